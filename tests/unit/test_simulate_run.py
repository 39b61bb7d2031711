"""The simulate experiment from config to tables, and the calibration file that it may start from."""

from __future__ import annotations

from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis import compare, simulate
from analysis.load import load_run
from xpyd.calibration import fitted
from xpyd.calibration_points import FILE as POINTS_FILE
from xpyd.calibration_points import SHARED, Points, pooled, read_points
from xpyd.compose import ROOT
from xpyd.config.base import ConfigError
from xpyd.config.load import dump_config, load_config
from xpyd.config.modeled import Simulate
from xpyd.economics.cost import ComputeModel, ComputePoint, LinkModel, LinkPoint
from xpyd.economics.delays import NO_DELAYS, DelayPoint, Delays
from xpyd.economics.moving import UNKNOWN, BesidePoint
from xpyd.entry import Job
from xpyd.model.spec import ModelSpec
from xpyd.run_dir import RunDir
from xpyd.simulate.config import MachineConfig
from xpyd.simulate.model import EMULATED, closed_form, read_calibration
from xpyd.simulation import at_home, costs_of, run_simulation, setup_of

COMPUTE = ComputeModel(2e-3, 1e-4, 3e-8, 3e-4, 1e-6, 5e-4)
LINK = LinkModel(2e-4, 1e-5, 1e9)
TINY = ModelSpec("tiny", 6, 256, 8, 4, 32, 704, 2048)
MACHINE = MachineConfig(1e12, 0.5, 100.0, 0.5, 1e-5, 1e-6)


def composed(**changes: Any) -> dict[str, Any]:
    """A small simulate run, as Hydra composes it."""
    length = {"kind": "fixed", "tokens": 64}
    config: dict[str, Any] = {
        "experiment": "simulate",
        "model": asdict(TINY),
        "run": {"report": False},
        "placement": {"num_prefill": 1, "num_decode": 1},
        "scheduler": yaml.safe_load((ROOT / "conf/scheduler/chunked.yaml").read_text()),
        "transfer": {"mode": "layerwise"},
        "fabric": {"name": "auto", "rate_gbps": 10.0},
        "workload": {
            "num_requests": 6,
            "arrival": {"kind": "poisson", "rate_rps": 10.0},
            "classes": [{"name": "all", "share": 1.0, "input_len": length, "output_len": length}],
        },
        "slo": {"ttft_s": 0.5, "itl_s": 0.05},
        "simulate": {},
        "machine": asdict(MACHINE),
        "num_pairs": 2,
    }
    return config | changes


def simulated(folder: Path, **changes: Any) -> Path:
    config = load_config(composed(**changes))
    run_dir = RunDir.create(folder, "simulate", "run")
    run_dir.write_config(dump_config(config))
    assert isinstance(config, Simulate)
    run_simulation(config, Job(config, run_dir))
    run_dir.finish()
    return run_dir.path


def test_a_simulated_comparison_reads_as_one_and_says_that_it_is_modeled(tmp_path: Path) -> None:
    run = load_run(simulated(tmp_path))
    for results in (simulate.analyse(run), compare.analyse(run)):
        assert all("modeled" in table.title for table in results.tables)
        assert not any("measured" in text for table in results.tables for text in (table.title, *table.columns))
    own = simulate.analyse(run)
    assert set(own.frame["source"]) == {"modeled"}
    assert len(run.tables["requests"]) == 4 * 6
    assert len(run.tables["tokens"]) == 4 * 6 * 64
    assert list(run.tables["blocks"]["arm"]) == ["colocated", "disaggregated", "disaggregated", "colocated"]


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    first, second = (load_run(simulated(tmp_path / name)).tables for name in "ab")
    for table in ("stages", "tokens", "steps", "transfers", "blocks"):
        assert first[table].equals(second[table])
        assert len(first[table])


@pytest.mark.parametrize(("rows", "kept"), [("sample", 2), ("none", 0)])
def test_fewer_rows_leave_the_sums(tmp_path: Path, rows: str, kept: int) -> None:
    whole = load_run(simulated(tmp_path / "all"))
    fewer = load_run(simulated(tmp_path / "fewer", simulate={"rows": rows, "sample_every": 3}))
    assert len(fewer.tables["requests"]) == kept * 4
    sums = [[{**block, "wall_s": 0} for block in simulate.read_blocks(run)] for run in (whole, fewer)]
    assert sums[0] == sums[1]
    assert simulate.analyse(fewer).tables[0].rows[0] == ("num_requests", "12", "12")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"placement": {"num_colocated": 2}}, "simulate.arms=serve"),
        ({"transfer": {"staging": "on"}}, "transfer.staging=off"),
        ({"simulate": {"outages": [{"instance": 0, "from_s": 0, "to_s": 9}]}}, "set arms=serve"),
        ({"simulate": {"arms": "serve", "outages": [{"instance": 0, "from_s": 0, "to_s": 9}]}}, "faults=retry"),
        ({"simulate": {"outages": [{"instance": 0, "from_s": 2, "to_s": 1}]}}, "to_s=1"),
        ({"simulate": {"rows": "some"}}, "simulate.rows"),
        ({"simulate": {"scatter": True}}, "give a calibration file"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_a_remedy(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(composed(**changes))


def points() -> Points:
    """Two rounds, the second on a machine that is two per cent slower."""
    settings = [(16, 0, 0, 0), (320, 0, 0, 0), (96, 160, 0, 0), (40, 0, 3, 120)]
    settings += [(0, 0, 1, 400), (0, 0, 4, 400), (0, 0, 12, 480)]
    rounds = [
        [ComputePoint(COMPUTE.step_s(*s) * f * slow, *s) for s in settings for f in (0.995, 1.0, 1.005)]
        for slow in (0.99, 1.01)
    ]
    sizes = [(1 << 16, 6), (1 << 20, 6), (1 << 22, 24), (1 << 24, 96)]
    transfers = [LinkPoint(b, d, LINK.transfer_s(b, d) * f) for b, d in sizes for f in (0.99, 1.0, 1.01)]
    beside = [
        BesidePoint(False, n * (4e-3 + 1e-4) + b * 2e-9 * f, 4e-3, n, b, 1, 0)
        for b, n in ((1 << 21, 9), (1 << 23, 12))
        for f in (0.99, 1.0, 1.01)
    ]
    played = [{"decode": [ComputePoint(1.25 * point.seconds, *astuple(point)[1:]) for point in own]} for own in rounds]
    delays = [DelayPoint("admit", seconds) for seconds in (4e-4, 5e-4, 9e-3)] + [DelayPoint("tell", 2e-4)]
    return Points(rounds, played, transfers, beside, delays)


def test_a_calibration_recovers_the_costs_and_comes_back_from_its_file(tmp_path: Path) -> None:
    content = {"conditions": {"model": "tiny"}, **fitted([points()])}
    for name, expected in asdict(COMPUTE).items():
        found = content["compute"][name]
        assert found["value"] == pytest.approx(expected, rel=0.02)
        assert found["low"] <= expected <= found["high"]
    assert content["interference"]["max_error"] < 0.03
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump(content))
    costs = read_calibration(path, TINY)
    assert costs.link.bytes_per_s == pytest.approx(1e9, rel=0.02)
    assert costs.moving.receive_byte_s == pytest.approx(2e-9, rel=0.02)
    assert costs.delays == Delays(admit_s=5e-4, tell_s=2e-4), "medians, and 0 where nothing was measured"
    assert content["moving"]["receive_byte_s"]["low"] < 2e-9 < content["moving"]["receive_byte_s"]["high"]
    assert [each[0] for each in costs.slowness] == pytest.approx([0.99, 1.01], rel=1e-3), "a round is a group"
    assert costs.label == "calibrated"
    alone = ComputeModel(**{name: each["value"] for name, each in content["compute"].items()})
    assert costs.compute == alone
    assert astuple(costs.engines["decode"]) == pytest.approx((1.25, 1.25), rel=0.02)
    assert content["engine"]["decode"]["step_factor"]["low"] < 1.25 < content["engine"]["decode"]["step_factor"]["high"]
    for own in asdict(costs.scatters["decode"]).values():
        assert 0.97 < own[0] < own[len(own) // 2] < own[-1] < 1.03
        assert own[len(own) // 2] == pytest.approx(1, abs=0.01)
    with pytest.raises(ValueError, match="made for model tiny, here other"):
        read_calibration(path, ModelSpec("other", 6, 256, 8, 4, 32, 704, 2048))
    with pytest.raises(ValueError, match="cannot be read"):
        read_calibration(tmp_path / "nothing.yaml", TINY)
    path.write_text("a: 1")
    with pytest.raises(ValueError, match="no calibration file"):
        read_calibration(path, TINY)


def test_a_slow_while_of_the_machine_is_no_cost_of_context() -> None:
    """Two of five calibrations are slow, and most so while the chunk far behind in its prompt is timed."""
    calibrations = [points() for _ in range(5)]
    for number in (1, 3):
        slow = [
            [replace(p, seconds=p.seconds * (2.5 if p.num_cached_tokens else 1.5)) for p in own]
            for own in calibrations[number].rounds
        ]
        calibrations[number] = replace(calibrations[number], rounds=slow)
    found = fitted(calibrations)["compute"]
    assert found["prefill_pair_s"]["value"] == pytest.approx(COMPUTE.prefill_pair_s, rel=0.05)
    assert found["prefill_token_s"]["value"] == pytest.approx(COMPUTE.prefill_token_s, rel=0.05)


def test_a_file_of_before_moving_was_measured_still_loads(tmp_path: Path) -> None:
    content = fitted([points()])
    old = {"conditions": {"model": "tiny"}, **{key: content[key] for key in ("compute", "link", "scores")}}
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump(old))
    costs = read_calibration(path, TINY)
    assert (costs.moving, costs.engines, costs.scatters, costs.slowness) == (UNKNOWN, {}, {}, ())
    assert costs.delays == NO_DELAYS
    assert costs.label == "calibrated, but for what moving KV costs the steps beside it and what messages take"
    with pytest.raises(ConfigError, match="does not say how steps scatter; calibrate anew"):
        costs_of(load_config(composed(simulate={"calibration": str(path), "scatter": True})))
    path.write_text(yaml.safe_dump({**old, "moving": None, "slowness": [1.0]}))  # version 2, no room for a hand-off
    assert (read_calibration(path, TINY).moving, read_calibration(path, TINY).slowness) == (UNKNOWN, ())
    path.write_text(yaml.safe_dump({"conditions": {"model": "tiny"}, **content, "delays": None}))  # version 4
    assert read_calibration(path, TINY).label == "calibrated, but for what messages take"


def test_a_calibrated_link_is_taken_to_the_rate_that_is_asked_for(tmp_path: Path) -> None:
    """As emulated, it fills a wire of any rate; without an override it stays as it was measured."""
    content = {"conditions": {"model": "tiny", "rate_gbps": 10.0, "labels": [EMULATED]}, **fitted([points()])}
    content["link"]["bytes_per_s"]["value"] = 1.2e9  # of 1.25e9
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump(content))
    found = []
    for gbps in (10.0, 0.5):
        config = load_config(composed(simulate={"calibration": str(path)}, fabric={"name": "tcp", "rate_gbps": gbps}))
        assert isinstance(config, Simulate)
        costs = at_home(config, costs_of(config))
        found.append((costs.link.bytes_per_s, costs.label))
    assert found[0] == (1.2e9, "calibrated")
    assert found[1] == (pytest.approx(6e7), "calibrated, its link taken from 10 to 0.5 Gb/s")


def test_steps_scatter_where_they_are_told_to_or_where_the_calibration_says_how(tmp_path: Path) -> None:
    content = {"conditions": {"model": "tiny"}, **fitted([points()])}
    path = tmp_path / "calibration.yaml"
    found = []
    for known in (content, {**content, "scatter": {}}):
        path.write_text(yaml.safe_dump(known))
        for scatter in (None, False):
            config = load_config(composed(simulate={"calibration": str(path), "scatter": scatter}))
            assert isinstance(config, Simulate)
            found.append(set(setup_of(config, "disaggregated", costs_of(config)).scatters))
    assert found == [{"decode"}, set(), set(), set()]
    for name in ("plan", "break_even"):
        assert yaml.safe_load((ROOT / f"conf/{name}.yaml").read_text())["simulate"]["scatter"] is None


def test_points_of_earlier_calibrations_come_back_where_they_were_made_of_the_same(tmp_path: Path) -> None:
    holds_for = dict.fromkeys(SHARED, "same")
    RunDir(tmp_path).write_json(POINTS_FILE, points().content(holds_for))
    earlier = read_points([str(tmp_path), str(tmp_path)], holds_for)
    assert earlier == [points(), points()]
    assert pooled(earlier).rounds == [*points().rounds, *points().rounds]
    assert pooled(earlier).beside == [*points().beside, *points().beside]
    old = points().content(holds_for)
    del old["delays"]
    RunDir(tmp_path).write_json(POINTS_FILE, old)
    assert read_points([str(tmp_path)], holds_for) == [replace(points(), delays=[])], "of before version 5"
    slowness = fitted([points(), *earlier])["slowness"]
    assert [len(group) for group in slowness] == [2, 2, 2], "of several calibrations each is a group"
    with pytest.raises(ValueError, match=r"was made with rate_gbps=same, here 0\.5; leave it out"):
        read_points([str(tmp_path)], {**holds_for, "rate_gbps": 0.5})
    with pytest.raises(ValueError, match="give run folders of"):
        read_points([str(tmp_path / "nothing")], holds_for)


def test_the_closed_form_follows_the_roofline() -> None:
    costs, roofline = closed_form(TINY, MACHINE, 8.0), MACHINE.build()
    assert costs.link.bytes_per_s == 1e9
    assert costs.compute.step_s(1024) == pytest.approx(roofline.step_s(TINY, 1024), rel=0.25)
    context = roofline.step_s(TINY, 0, 0, 64, 2048)
    assert costs.compute.step_s(0, 0, 64, 64 * 2048) == pytest.approx(context, rel=0.25)
