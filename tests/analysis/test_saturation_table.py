"""Saturation by hand: where attainment crosses the target, how busy pools are, what tokens cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import saturation
from analysis.load import Run, RunError, load_run
from analysis.saturation_curve import crossing, curve, ratios, saturated
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd.records import SaturationRow

GOOD, LATE = Way(), Way(queue=900)  # the limit on the first token is 500 ms
MOVED, MOVED_LATE = Way(moved=True), Way(queue=900, moved=True)
CONFIG = {
    "experiment": "saturation",
    "prices": {"currency": "EUR", "prefill_rank_hour": 3.6, "decode_rank_hour": 3.6, "colocated_rank_hour": 1.8},
    "search": {"attainment": 0.9, "num_repeats": 5},
    "placement": {"num_prefill": 1, "num_decode": 1, "num_colocated": 0},
}
# Attainment over rate: colocated holds at 8 and 16, loses half at 32; disaggregated holds at 8, loses all at 16.
PLAYED = {
    ("colocated", 8.0): (GOOD, GOOD),
    ("colocated", 16.0): (GOOD, GOOD),
    ("colocated", 32.0): (GOOD, LATE),
    ("disaggregated", 8.0): (MOVED, MOVED),
    ("disaggregated", 16.0): (MOVED_LATE, MOVED_LATE),
}


def run_of(folder: Path, played: dict[tuple[str, float], tuple[Way, Way]], num_repeats: int = 5) -> Run:
    rows: list[Any] = []
    for place, ((arm, rate), ways) in enumerate(played.items()):
        for repeat in range(num_repeats):
            block = place * num_repeats + repeat
            rows += block_rows(block, repeat, arm, [(100, way) for way in ways])
            rows.append(SaturationRow(block, arm, rate, repeat, 1.0))
    return load_run(write_run(folder / "run", rows, CONFIG))


def test_points_and_ratio(tmp_path: Path) -> None:
    points = curve(run_of(tmp_path, PLAYED))
    found = {each.arm: each for each in saturated(points, 0.9)}
    # Over the logarithm of the rate: from 1 at 16 to 0.5 at 32 the target is a fifth of the way, from 1 to 0 a tenth.
    assert found["colocated"].rate.mid == pytest.approx(16 * 2**0.2)
    assert found["disaggregated"].rate.mid == pytest.approx(8 * 2**0.1)
    assert found["colocated"].bracket == (16, 32)
    assert found["colocated"].rate.low == pytest.approx(16 * 2**0.2), "all repeats agree"
    assert ratios(list(found.values()), "colocated")["disaggregated"].mid == pytest.approx(2**0.1 / 2**1.2)


def test_use_and_cost_of_a_block(tmp_path: Path) -> None:
    points = {(point.arm, point.rate_rps): point for point in curve(run_of(tmp_path, PLAYED))}
    held = points["colocated", 16.0]
    # Two requests of 4 tokens in a block of one second; two ranks at 1.8 an hour cost 0.001 a second.
    assert held.mean("goodput_rps").mid == pytest.approx(2)
    assert held.mean("cost_per_million").mid == pytest.approx(0.001 / 8 * 1e6)
    assert held.mean("use colocated").mid == pytest.approx(2 * 0.020 / 2), "two steps of 20 ms on two ranks"
    assert points["colocated", 32.0].mean("cost_per_million").mid == pytest.approx(0.001 / 4 * 1e6), "late: not bought"
    assert points["disaggregated", 16.0].mean("cost_per_million").mid == float("inf")
    assert points["disaggregated", 8.0].pools == ["prefill", "decode"]


def test_a_dip_that_is_noise_does_not_end_the_climb() -> None:
    rates = np.array([1.0, 2.0, 4.0, 8.0])
    assert crossing(rates, np.array([0.88, 0.96, 1.0, 0.0]), 0.9) > 4, "made to fall with the rate: 0.95, 0.95, 0.95, 0"
    assert np.isnan(crossing(rates, np.ones(4), 0.9))
    assert np.isnan(crossing(rates, np.zeros(4), 0.9))


def test_the_page_says_what_each_arm_sustains(tmp_path: Path) -> None:
    results = saturation.analyse(run_of(tmp_path, PLAYED))
    assert results.answer.startswith("Sustained at 90 % attainment: colocated 18.4 [18.4, 18.4] /s, disaggregated 8.57")
    assert "disaggregated 0.467 [0.467, 0.467] times colocated" in results.answer
    assert len(results.frame) == 25


def test_an_arm_that_never_gave_way_has_no_point(tmp_path: Path) -> None:
    held = {key: ways for key, ways in PLAYED.items() if key != ("colocated", 32.0)}
    results = saturation.analyse(run_of(tmp_path, held))
    assert "colocated more than 16 /s (the highest rate played)" in results.answer
    assert "times colocated" not in results.answer


def test_nothing_played_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no block has ended"):
        saturation.analyse(run_of(tmp_path, {}))
