"""Regret with planted runs whose best way is known: how much, how sure, ties, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from analysis import regret
from analysis.load import Run, RunError, load_run
from analysis.results import Results
from tests.analysis.synthetic import Way, block_rows, write_run
from tests.analysis.test_plan_table import rows as plan_rows
from xpyd.economics.frozen import HASH, sealed
from xpyd.records import SaturationRow

GOOD, LATE = Way(), Way(queue=900)  # the limit on the first token is 500 ms
C3, SPLIT, LATE_SPLIT = "3C", "1P2D layerwise", "2P1D layerwise"
COUNTS = {C3: (0, 0, 3), SPLIT: (1, 2, 0), LATE_SPLIT: (2, 1, 0), "1P2D layerwise fp8": (1, 2, 0)}
NONE_LATE = (0.0,) * 5  # of the requests at twice the rate that holds, the share that is in time, by repeat
Real = Mapping[str, tuple[float, Sequence[float]]]


def frozen(holds: Mapping[str, float]) -> dict[str, Any]:
    made = [row for name, rate in holds.items() for row in plan_rows(name, COUNTS[name], rate)]
    return sealed({"written_at": "2026-11-21T10:00:00", "labels": ["modeled"], "ways": [asdict(row) for row in made]})


def played(folder: Path, plan: dict[str, Any], real: Real, num_repeats: int = 5, **environment: Any) -> Run:
    """``real``: the rate at which a way holds with all requests, and what is left of them at twice that rate."""
    made: list[Any] = []
    for name, (rate, shares) in real.items():
        for repeat in range(num_repeats):
            for offered, share in ((rate, 1.0), (2 * rate, shares[repeat])):
                number = len([row for row in made if isinstance(row, SaturationRow)])
                ways = [(100, GOOD if i < 4 * share else LATE) for i in range(4)]
                made += block_rows(number, repeat, "colocated", ways)
                made.append(SaturationRow(number, name, offered, repeat, share))
    config = {
        "experiment": "regret",
        "regret": {"plan": "runs/plan/x", "sha256": plan[HASH]},
        "prices": {"currency": "EUR", "prefill_rank_hour": 3.6, "decode_rank_hour": 1.8, "colocated_rank_hour": 1.8},
        "search": {"attainment": 0.9, "num_repeats": 5},
        "placement": {"num_prefill": 0, "num_decode": 0, "num_colocated": 3},
    }
    began = {"started_at": "2026-11-21T10:00:01", **environment}
    path = write_run(folder / "run", made, config, began)
    (path / "plan.json").write_text(json.dumps(plan))
    return load_run(path)


def held(folder: Path, planned: Mapping[str, float], real: Real) -> Results:
    return regret.analyse(played(folder, frozen(planned), real))


def test_advice_that_real_ranks_confirm_has_no_regret(tmp_path: Path) -> None:
    real = {C3: (4.0, NONE_LATE), SPLIT: (8.0, NONE_LATE), LATE_SPLIT: (4.0, NONE_LATE)}
    results = held(tmp_path, {C3: 10.0, SPLIT: 20.0, LATE_SPLIT: 5.0}, real)
    assert results.answer == "No regret: of 3 real ways none sustains more than 1P2D layerwise, which the plan advised."
    assert "said: split (1P2D layerwise). Real ranks say: split" in results.because
    first = results.tables[0].rows[0]
    assert first[:1] + first[2:] == (SPLIT, "1", "8.57 [8.57, 8.57] /s", "1", "0.4", "-", "advised, best")
    assert results.tables[0].title == "The plan against real ranks [plan: modeled; real: CPU, shared node]"
    # 4 requests of 4 tokens in a second, for 1P2D at 7.2 EUR an hour: 16 tokens a second, 125 EUR a million.
    assert results.tables[1].rows[0][2::2] == ("4 [4, 4] /s", "125 [125, 125]")


def test_regret_is_paired_over_repeats(tmp_path: Path) -> None:
    """Both ways do well and badly in the same repeats: each has an interval, and half of the best is lost in all."""
    shares = (0.5, 0.0, 0.5, 0.25, 0.0)
    results = held(tmp_path, {C3: 10.0, SPLIT: 20.0, LATE_SPLIT: 5.0}, {C3: (8.0, shares), SPLIT: (4.0, shares)})
    lost = 4 * 2 ** (0.1 / 0.75)
    assert results.answer.startswith("Regret: 1P2D layerwise, which the plan advised, sustains ")
    assert f"{lost:.3g} [" in results.answer
    assert results.answer.endswith("(50 [50, 50] %) less than 3C.")
    rate = results.frame[(results.frame["way"] == C3) & (results.frame["source"] == "measured")].iloc[0]
    assert rate["sustained_rps_low"] < 2 * lost < rate["sustained_rps_high"]
    assert "Not played: 2P1D layerwise" in results.tables[0].notes[-1]
    assert results.tone == "stay", "not to split is the real answer"


def test_not_to_split_is_advice_that_may_be_regretted(tmp_path: Path) -> None:
    results = held(tmp_path, {C3: 20.0, SPLIT: 10.0}, {C3: (4.0, NONE_LATE), SPLIT: (5.0, NONE_LATE)})
    assert "3C, which the plan advised, sustains 1.07 [1.07, 1.07] /s (20 [20, 20] %) less than 1P2D" in results.answer


def test_what_cannot_be_told_apart_is_a_tie(tmp_path: Path) -> None:
    """The advised way loses in two repeats and wins in one."""
    first, second = (0.5, 0.5, 0.0, 0.0, 0.0), (0.0, 0.0, 0.5, 0.0, 0.0)
    results = held(tmp_path, {C3: 10.0, SPLIT: 20.0}, {C3: (8.0, first), SPLIT: (8.0, second)})
    assert results.answer.startswith("No regret that can be told from none: 1P2D layerwise")
    assert [row[-1] for row in results.tables[0].rows] == ["best", "advised, ties with the best"]
    assert "Real ranks say: tie" in results.because


def test_a_tie_of_the_plan_advises_both_and_answers_for_the_worse(tmp_path: Path) -> None:
    results = held(tmp_path, {C3: 10.0, SPLIT: 10.0}, {C3: (4.0, NONE_LATE), SPLIT: (8.0, NONE_LATE)})
    assert "said: tie (1P2D layerwise or 3C)" in results.because
    assert "3C, which the plan advised, sustains 4.29 [4.29, 4.29] /s (50 [50, 50] %) less" in results.answer


def test_a_way_that_never_held_loses_at_least_what_is_between(tmp_path: Path) -> None:
    """2P1D misses the target at 4 /s, the lowest rate played; 3C sustains 8.57."""
    run = played(tmp_path, frozen({C3: 5.0, LATE_SPLIT: 20.0}), {C3: (8.0, NONE_LATE), LATE_SPLIT: (2.0, NONE_LATE)})
    run.tables["saturation"] = run.tables["saturation"].query("not (arm == @LATE_SPLIT and rate_rps == 2.0)")
    results = regret.analyse(run)
    assert results.tables[0].rows[1][3] == "less than 4 /s"
    assert "sustains at least 4.57 [4.57, 8.57] /s (53.3 [53.3, 100] %) less than 3C" in results.answer
    assert "do not split" in results.because


def test_an_advised_way_that_held_at_every_rate_is_not_regretted(tmp_path: Path) -> None:
    run = played(tmp_path, frozen({C3: 5.0, SPLIT: 20.0}), {C3: (4.0, NONE_LATE), SPLIT: (8.0, NONE_LATE)})
    run.tables["saturation"] = run.tables["saturation"].query("not (arm == @SPLIT and rate_rps == 16.0)")
    results = regret.analyse(run)
    assert results.answer.startswith("No regret")
    assert results.tables[0].rows[0][3] == "more than 8 /s"


def test_advice_that_was_not_played_has_no_regret_to_tell(tmp_path: Path) -> None:
    coded = "1P2D layerwise fp8"
    results = held(tmp_path, {C3: 10.0, coded: 20.0, SPLIT: 9.0}, {C3: (4.0, NONE_LATE), SPLIT: (8.0, NONE_LATE)})
    assert results.answer == f"No regret to tell: {coded}, which the plan advised, was not played."


def test_fewer_than_five_repeats_carry_no_interval(tmp_path: Path) -> None:
    run = played(tmp_path, frozen({C3: 5.0, SPLIT: 20.0}), {C3: (8.0, NONE_LATE), SPLIT: (4.0, NONE_LATE)}, 2)
    run.config["search"]["num_repeats"] = 2
    results = regret.analyse(run)
    assert "sustains 4.29 /s (50 %) less than 3C" in results.answer
    assert "No intervals" in results.tables[0].notes[2]


def test_a_changed_plan_is_refused_and_so_is_one_of_afterwards(tmp_path: Path) -> None:
    plan, real = frozen({C3: 5.0, SPLIT: 20.0}), {C3: (8.0, NONE_LATE), SPLIT: (4.0, NONE_LATE)}
    run = played(tmp_path / "a", plan, real)
    plan["ways"][0]["attainment"] = 0.5
    (run.paths[0] / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(RunError, match="changed after it was frozen"):
        regret.analyse(run)
    (run.paths[0] / "plan.json").write_text(json.dumps(sealed(plan)))
    with pytest.raises(RunError, match="another plan than the run was started with"):
        regret.analyse(run)
    late = played(tmp_path / "b", frozen({C3: 5.0, SPLIT: 20.0}), real, started_at="2026-11-21T09:59:59")
    with pytest.raises(RunError, match="it is no prediction of it"):
        regret.analyse(late)


def test_a_run_that_says_nothing_yet_is_refused(tmp_path: Path) -> None:
    few = played(tmp_path / "few", frozen({C3: 5.0}), {C3: (8.0, NONE_LATE)}, 2)
    with pytest.raises(RunError, match="no rate was played 5 times yet"):
        regret.analyse(few)
    nothing = played(tmp_path / "none", frozen({C3: 5.0}), {C3: (8.0, NONE_LATE)})
    nothing.tables["saturation"] = nothing.tables["saturation"].query("rate_rps == 16.0")
    with pytest.raises(RunError, match="no way held at any rate"):
        regret.analyse(nothing)
