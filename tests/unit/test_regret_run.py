"""What is played of a frozen plan: its own question, in turns A B B A, and by an attempt that goes on after a stop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_config import composed
from tests.unit.test_plan import planned
from xpyd.config.base import ConfigError
from xpyd.config.load import dump_config, load_config
from xpyd.config.regret import Regret
from xpyd.economics.frozen import HASH, FrozenError, read_sealed, sealed
from xpyd.entry import Job
from xpyd.plan_file import PLAN, with_plan
from xpyd.planning import run_plan
from xpyd.rate_sweep import RateSweep, Turn, played_before
from xpyd.records import BlockRow, SaturationRow
from xpyd.regret import _keep_plan
from xpyd.request import Request
from xpyd.run_dir import RowWriter, RunDir
from xpyd.saturation_search import SaturationSearch
from xpyd.streams import merge
from xpyd.worker.client import Played
from xpyd.workload.slo import SloConfig

SEARCH = SaturationSearch(4.0, 64.0, 2.0, 0.9, 0.3, 1.0, 2)
HOLDS = {"A": (20.0, 20.0), "B": (9.0, 9.0)}  # by repeat
S = 1_000_000_000


def frozen_plan(folder: Path, *overrides: str) -> Path:
    """A file with a real plan's question, as if its ways had been played."""
    content = {"config": dump_config(planned(*overrides)), "ways": [], "written_at": "2026-11-21T10:00:00"}
    path = folder / PLAN
    path.write_text(json.dumps(sealed(content)))
    return path


def regret(path: Path, *overrides: str) -> Regret:
    config = load_config(with_plan(composed("regret", f"regret.plan={path}", *overrides)))
    assert isinstance(config, Regret)
    return config


def test_the_question_is_the_plans_own(tmp_path: Path) -> None:
    path = frozen_plan(tmp_path, "slo.ttft_s=3.5", "plan.widths=[1,2]", "plan.hybrid=true", "search.num_repeats=4")
    config = regret(path, "search.growth=3", "placement.allow_shared_node=true")
    assert [way.name for way in config.ways] == ["2C", "1C(tp2)", "1P1D layerwise", "1P1D layerwise hybrid"]
    assert (config.slo.ttft_s, config.search.num_repeats, config.search.growth) == (3.5, 4, 3.0)
    assert config.world_size == 3
    assert config.regret.sha256 == read_sealed(path)[HASH]
    assert all(config.serve(way).placement.allow_shared_node for way in config.ways)
    assert load_config(dump_config(config)) == config, "what is frozen into the run folder needs no plan file"


def test_ends_of_different_widths_lay_their_heads_together(tmp_path: Path) -> None:
    config = regret(frozen_plan(tmp_path, "plan.num_ranks=3", "plan.widths=[1,2]"))
    orders = {way.placement.name: config.serve(way).transfer.block_order for way in config.ways if way.splits}
    assert orders.pop("1P2D") == orders.pop("2P1D") == "tokens_first"
    assert orders == {"1P(tp2)1D": "heads_first", "1P1D(tp2)": "heads_first"}


def test_assumed_codecs_are_not_played(tmp_path: Path) -> None:
    codec = "plan.codecs=[{name: half, bytes_share: 0.5, encode_s_per_gbyte: 0, decode_s_per_gbyte: 0}]"
    assert [way.name for way in regret(frozen_plan(tmp_path, codec)).ways] == ["2C", "1P1D layerwise"]


def test_a_changed_plan_is_refused(tmp_path: Path) -> None:
    path = frozen_plan(tmp_path)
    path.write_text(path.read_text().replace('"num_ranks": 2', '"num_ranks": 3'))
    with pytest.raises(ConfigError, match=r"regret\.plan: .*changed after it was frozen"):
        regret(path)
    with pytest.raises(ConfigError, match=r"regret\.plan: .*cannot be read"):
        regret(tmp_path / "nothing.json")
    path.write_text(json.dumps(sealed({"cells": []})))
    with pytest.raises(ConfigError, match="but of no plan; give the plan"):
        regret(path)


def test_a_run_keeps_the_plan_that_it_began_with(tmp_path: Path) -> None:
    path = frozen_plan(tmp_path)
    config, run_dir = regret(path), RunDir.create(tmp_path, "regret", "run")
    path.unlink()
    frozen_plan(tmp_path, "slo.ttft_s=9")
    with pytest.raises(FrozenError, match="another plan than this run was started with"):
        _keep_plan(config, Job(config, run_dir))
    path.unlink()
    frozen_plan(tmp_path)
    _keep_plan(config, Job(config, run_dir))
    path.unlink()
    _keep_plan(config, Job(config, run_dir))
    assert read_sealed(run_dir.path / PLAN)[HASH] == config.regret.sha256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["faults=go_on"], r"faults\.policy=go_on: without a rank the ways are no longer equal"),
        (["search.max_rps=1"], r"max_rps=1\.0 is below start_rps"),
        (["transport=nixl", "transport.peer_errors=true", "fabric.tls=[sm]"], "peer_errors"),
    ],
)
def test_what_cannot_be_played_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        regret(frozen_plan(tmp_path), *overrides)


def test_a_plan_freezes_every_way_that_it_played(tmp_path: Path) -> None:
    config, run_dir = planned(), RunDir.create(tmp_path, "plan", "run")
    run_plan(config, Job(config, run_dir))
    content = read_sealed(run_dir.path / PLAN)
    rows = merge(run_dir.path, "plan").to_pylist()
    assert [list(way.values())[:-1] for way in content["ways"]] == [list(row.values())[:-1] for row in rows]
    assert load_config(content["config"]) == config
    assert content["costs"]["link"]["bytes_per_s"] > 0


class Ranks:
    """Ways that meet the limits up to ``HOLDS``, and a stop that is asked for after some blocks."""

    def __init__(
        self,
        folder: RunDir,
        stop_after: int = 10**6,
        holds: Mapping[str, tuple[float, float]] = HOLDS,
        sure: bool = False,
    ) -> None:
        self.turns: list[Turn] = []
        self._holds = holds
        self._stop_after = stop_after
        completed = folder.completed_blocks()
        self.job = Job(None, RunDir(folder.path, folder.next_attempt()), completed)
        with RowWriter(self.job.run_dir, 0) as self.rows:
            limits = SloConfig(1.0, 1.0)
            sweep = RateSweep(list(holds), SEARCH, limits, self.job, self.rows, lambda own: own, self.play, sure)
            sweep.run(played_before(self.job))

    def play(self, turn: Turn) -> tuple[Sequence[Request], Played]:
        stopped = len(self.turns) == self._stop_after
        if not stopped:
            self.turns.append(turn)
            self.rows.write(BlockRow(turn.number, turn.repeat, turn.way, 0, S, 1, 0, 0, 0, 0))
        late = 0 if turn.rate_rps <= self._holds[turn.way][turn.repeat] else 5
        return [Request(0, 0, 4, 2)], Played(0, S, (), stopped, 0, {0: [0, late * S + 1, late * S + 2]})


def rows_of(folder: RunDir) -> list[dict[str, Any]]:
    return merge(folder.path, "saturation").to_pylist()


def test_ways_take_turns_until_each_gave_way(tmp_path: Path) -> None:
    ranks = Ranks(RunDir.create(tmp_path, "regret", "run"))
    assert [(turn.way, turn.rate_rps, turn.repeat) for turn in ranks.turns[:8]] == [
        (way, rate, repeat) for rate in (4.0, 8.0) for way, repeat in (("A", 0), ("B", 0), ("B", 1), ("A", 1))
    ]
    assert [turn.number for turn in ranks.turns] == list(range(len(ranks.turns)))
    assert max(turn.rate_rps for turn in ranks.turns if turn.way == "B") == 16, "B is done before A"
    assert not ranks.job.stop.cut_short


@pytest.mark.parametrize(("holds", "further"), [((20.0, 40.0), [64.0]), ((3.0, 9.0), [8.0, 16.0]), ((5.0, 5.0), [])])
def test_a_sure_sweep_goes_on_until_all_repeats_agree(
    tmp_path: Path, holds: tuple[float, float], further: list[float]
) -> None:
    """In every resample the way then holds at the lowest rate, and gives way at the highest."""
    plain, sure = (
        Ranks(RunDir.create(tmp_path, "regret", str(sure)), holds={"A": holds}, sure=sure) for sure in (False, True)
    )
    rates = [list(dict.fromkeys(turn.rate_rps for turn in ranks.turns)) for ranks in (plain, sure)]
    assert rates[1] == rates[0] + further
    assert min(rates[1]) <= min(holds)
    assert max(rates[1]) > max(holds)


@pytest.mark.parametrize("stop_after", [0, 1, 5, 11])
def test_an_attempt_goes_on_where_one_was_stopped(tmp_path: Path, stop_after: int) -> None:
    whole, broken = (RunDir.create(tmp_path, "regret", name) for name in ("whole", "broken"))
    Ranks(whole)
    first = Ranks(broken, stop_after)
    assert first.job.stop.cut_short
    assert len(first.turns) == stop_after
    Ranks(broken)
    played = [SaturationRow(**row) for row in rows_of(broken)]
    assert len({row.block for row in played}) == len(played)

    def content(rows: list[SaturationRow]) -> set[tuple[str, float, int, float]]:
        return {(row.arm, row.rate_rps, row.repeat, row.attainment) for row in rows}

    assert content(played) == content([SaturationRow(**row) for row in rows_of(whole)])
    assert len(played) == len(rows_of(whole)), "nothing is played twice"


def test_a_stopped_sweep_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ranks(RunDir.create(tmp_path, "regret", "june"), 8)
    said = capsys.readouterr().err
    assert "Rates missing, at least: A 3, B 3; run.name=june run.resume=true goes on" in said


def test_how_many_rates_are_left_at_the_least() -> None:
    search = SaturationSearch(4.0, 64.0, 2.0, 0.9, 0.3, 1.0, 2)
    assert search.rates_left({}) == 3, "a rung that fails, and two halvings of the gap to the one before"
    assert search.rates_left({4.0: 1.0, 8.0: 0.0}) == 2
    assert search.rates_left({4.0: 1.0, 8.0: 0.0, 5.66: 1.0}) == 1
    assert search.rates_left({64.0: 1.0}) == 0
