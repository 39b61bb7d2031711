"""The score of a block, by hand."""

from __future__ import annotations

import math

import pytest

from xpyd.request import Request
from xpyd.score import Score, mean_score, score
from xpyd.workload.slo import SloConfig

MS = 1_000_000


def test_a_block_scores_by_hand() -> None:
    requests = [Request(number, 0, 4, 3) for number in range(4)]
    times = {
        0: [0, 100 * MS, 110 * MS, 130 * MS],  # met: ttft 100 ms, gaps 10 and 20 ms
        1: [50 * MS, 350 * MS, 360 * MS, 370 * MS],  # ttft 300 ms is too long
        2: [0, 10 * MS, 20 * MS, 90 * MS],  # a gap of 70 ms is too long
        3: [0, 10 * MS, 20 * MS],  # never ended
    }
    found = score(times, requests, SloConfig(ttft_s=0.2, itl_s=0.05), 2000 * MS)
    assert found.goodput_rps == pytest.approx(0.5)
    assert found.attainment == pytest.approx(0.25)
    assert found.e2e_mean_s == pytest.approx((0.130 + 0.320 + 0.090) / 3)
    assert found.itl_p99_s == pytest.approx(0.020 + (0.070 - 0.020) * 0.95)  # 6 gaps: 10, 20, 10, 10, 10, 70
    assert found.ttft_p99_s == pytest.approx(0.1 + (0.3 - 0.1) * 0.98)  # 100, 300, 10


def test_a_block_in_which_nothing_ended_has_no_times() -> None:
    nothing = score({}, [Request(0, 0, 4, 3)], SloConfig(0.2, 0.05), 1000 * MS)
    assert nothing.goodput_rps == 0
    assert math.isnan(nothing.itl_p99_s)


def test_means_are_over_blocks() -> None:
    both = mean_score([Score(1.0, 0.5, 0.1, 0.2, 1.0), Score(3.0, 1.0, 0.3, 0.4, 2.0)])
    assert both == Score(2.0, 0.75, pytest.approx(0.2), pytest.approx(0.3), 1.5)  # type: ignore[arg-type]
