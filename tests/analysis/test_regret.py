"""Regret with planted sweeps: none, some, of a tie, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import plan
from analysis.load import Run, RunError, load_run
from tests.analysis.synthetic import CONFIG as BASE
from tests.analysis.synthetic import write_run
from tests.analysis.test_plan_table import CONFIG as PLAN
from tests.analysis.test_plan_table import rows
from xpyd.records import SaturationRow

COLOCATED, SPLIT, LATE_SPLIT = rows("3C", (0, 0, 3), 10), "1P2D layerwise", "2P1D layerwise"


def planned(folder: Path, best_split: float) -> Run:
    """3C sustains 10 * 2^0.1, 1P2D ``best_split`` times as much, 2P1D a tenth."""
    made = COLOCATED + rows(SPLIT, (1, 2, 0), 10 * best_split) + rows(LATE_SPLIT, (2, 1, 0), 1)
    return load_run(write_run(folder / "plan", made, {**PLAN, "plan": {"num_ranks": 3}}))


def session(folder: Path, ways: dict[str, float], placement: tuple[int, int] = (1, 2), **changes: Any) -> Run:
    """A saturation run in which each arm holds at its rate, and nothing at twice that."""
    found: list[Any] = []
    for arm, holds in ways.items():
        for rate, share in ((holds, 1.0), (2 * holds, 0.0)):
            found += [SaturationRow(len(found) + repeat, arm, rate, repeat, share) for repeat in range(5)]
    config = {
        "experiment": "saturation",
        "search": {"attainment": 0.9, "num_repeats": 5},
        "placement": {**BASE["placement"], "num_prefill": placement[0], "num_decode": placement[1]},
    }
    return load_run(write_run(folder, found, {**config, **changes}))


def sweep_of(folder: Path, split: float, other: float = 1.0) -> list[Run]:
    """Two sessions; in the second everything is half as fast."""
    return [
        session(folder / "a", {"colocated": 8.0, "disaggregated": 8.0 * split}),
        session(folder / "b", {"colocated": 4.0, "disaggregated": 4.0 * other}, (2, 1)),
    ]


def test_advice_that_the_sweep_confirms_has_no_regret(tmp_path: Path) -> None:
    results = plan.analyse(planned(tmp_path, 2.0), sweep_of(tmp_path, 1.5))
    assert results.because.endswith("Against real runs: no regret, 1P2D layerwise is the best of them too.")
    table = results.tables[-1]
    assert [(row[0], row[4], row[5]) for row in table.rows] == [
        (SPLIT, "1.5 [1.5, 1.5]", "advised, best"),
        (LATE_SPLIT, "1 [1, 1]", ""),
        ("3C", "1 [1, 1]", ""),
    ]
    assert "Regret: 0 [0, 0] %" in table.notes[0]
    assert "plan: CPU, shared node" in table.title


def test_advice_that_loses_has_its_regret_told(tmp_path: Path) -> None:
    """Advised: 1P2D. Really it sustains 0.8 times the colocated way, and 2P1D twice that: 60 % is lost."""
    results = plan.analyse(planned(tmp_path, 2.0), sweep_of(tmp_path, 0.8, 2.0))
    assert "1P2D layerwise sustains 60 [60, 60] % less than 2P1D layerwise" in results.because
    # 3C sustains 6 * 2^0.1 requests per second over both sessions; 1.2 times that are lost.
    assert f"{7.2 * 2**0.1:.3g} [{7.2 * 2**0.1:.3g}, {7.2 * 2**0.1:.3g}] /s" in results.tables[-1].notes[0]


def test_not_to_split_is_advice(tmp_path: Path) -> None:
    results = plan.analyse(planned(tmp_path, 0.5), sweep_of(tmp_path, 1.25))
    assert "3C sustains 20 [20, 20] % less than 1P2D layerwise" in results.because


def test_a_tie_advises_both_and_answers_for_the_worse(tmp_path: Path) -> None:
    results = plan.analyse(planned(tmp_path, 1.0), sweep_of(tmp_path, 1.25))
    assert results.answer.startswith("Tie")
    assert "3C sustains 20 [20, 20] % less than 1P2D layerwise" in results.because


def test_a_way_that_was_not_played_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"1P2D layerwise is not in the sweep, which played 3C, 2P1D.*experiments.satur"):
        plan.analyse(planned(tmp_path, 2.0), sweep_of(tmp_path, 1.5)[1:])
    results = plan.analyse(planned(tmp_path / "stay", 0.5), sweep_of(tmp_path / "b", 0.5)[1:])
    assert "Not a whole sweep: 1P2D layerwise was planned and not played." in results.tables[-1].notes[-1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slo": {"ttft_s": 9, "itl_s": 9}}, "slo is"),
        ({"workload": {"input_len": 7}}, "workload.input_len is 7, in the plan None"),
        ({"experiment": "compare"}, "a run of compare"),
        ({"placement": {**BASE["placement"], "num_prefill": 3}}, "num_ranks is 4, in the plan 3"),
    ],
)
def test_runs_of_another_question_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    config = {"experiment": "saturation", "search": {"attainment": 0.9, "num_repeats": 5}} | changes
    config.setdefault("placement", {**BASE["placement"], "num_decode": 2})
    run = load_run(write_run(tmp_path / "other", [SaturationRow(0, "colocated", 1.0, 0, 1.0)], config))
    with pytest.raises(RunError, match=says):
        plan.analyse(planned(tmp_path, 2.0), [run])


def test_an_arm_that_never_gave_way_says_nothing(tmp_path: Path) -> None:
    made = [SaturationRow(n, "colocated", 8.0, n, 1.0) for n in range(5)]
    config = {"experiment": "saturation", "search": {"attainment": 0.9, "num_repeats": 5}}
    config["placement"] = {**BASE["placement"], "num_decode": 2}
    with pytest.raises(RunError, match="never gave way"):
        plan.analyse(planned(tmp_path, 2.0), [load_run(write_run(tmp_path / "flat", made, config))])
