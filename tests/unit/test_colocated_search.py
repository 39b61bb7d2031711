"""The search of ``tune_colocated``: the grid, the score of a block, who is better, who goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from xpyd.colocated_search import ColocatedSearch, Score, mean_score, name_of, ranked, score
from xpyd.request import Request
from xpyd.scheduler.base import SchedulerConfig
from xpyd.workload.slo import SloConfig

MS = 1_000_000
START = SchedulerConfig("chunked", 32, 256, 16, 512)


def search(**values: Any) -> ColocatedSearch:
    given: dict[str, Any] = {
        "policies": ("chunked", "prefill_first"),
        "max_num_batched_tokens": (16, 256),
        "max_num_seqs": (8, 32),
        "objective": ("goodput_rps", "itl_p99_s"),
        "tie": 0.1,
        "num_repeats": 2,
        "keep": 0.5,
        "num_final_repeats": 5,
    }
    return ColocatedSearch(**{**given, **values})


def test_the_start_comes_first_and_impossible_points_are_left_out() -> None:
    found = search().candidates(START)
    assert list(found) == [
        "chunked 256 x 32",
        "chunked 16 x 8",  # 16 x 32 could not hold a token of each sequence
        "chunked 256 x 8",
        "prefill_first 16 x 8",
        "prefill_first 256 x 8",
        "prefill_first 256 x 32",
    ]
    assert found["chunked 16 x 8"] == replace(START, max_num_batched_tokens=16, max_num_seqs=8)
    assert all(name_of(each) == name for name, each in found.items())


def test_a_grid_of_nothing_new_is_refused() -> None:
    with pytest.raises(ValueError, match=r"search\.max_num_batched_tokens=\[16\]"):
        search(max_num_batched_tokens=(16,), max_num_seqs=(32,)).candidates(START)


def test_half_goes_on_and_plays_twice_as_much() -> None:
    assert search().num_rounds(5) == [(5, 2), (2, 4)]
    assert search(keep=0.9).num_rounds(3) == [(3, 2), (2, 4)], "each round loses one at least"
    assert search().num_rounds(1) == []
    assert search().num_blocks(5) == (5 + 1) * 2 + (2 + 1) * 4 + 2 * 5
    assert search().total_repeats(5) == 2 + 4 + 5


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


def test_a_block_in_which_nothing_ended_is_the_worst() -> None:
    nothing = score({}, [Request(0, 0, 4, 3)], SloConfig(0.2, 0.05), 1000 * MS)
    assert nothing.goodput_rps == 0
    assert math.isnan(nothing.itl_p99_s)
    assert ranked({"nothing": nothing, "slow": Score(0.0, 0.0, 9.0, 9.0, 9.0)}, ("itl_p99_s",), 0.02)[-1] == "nothing"


def scores(**goodput_and_gap: tuple[float, float]) -> dict[str, Score]:
    return {name: Score(rps, 1.0, gap, 0.1, 1.0) for name, (rps, gap) in goodput_and_gap.items()}


def test_the_second_measure_decides_among_those_that_tie() -> None:
    given = scores(most=(10.0, 0.3), near=(9.1, 0.1), nearer=(9.5, 0.2), far=(8.0, 0.01))
    assert ranked(given, ("goodput_rps", "itl_p99_s"), 0.1) == ["near", "nearer", "most", "far"]
    assert ranked(given, ("goodput_rps", "itl_p99_s"), 0.0) == ["most", "nearer", "near", "far"]
    assert ranked(given, ("itl_p99_s",), 0.1)[0] == "far"
    assert ranked(given, ("itl_p99_s", "goodput_rps"), 0.0)[0] == "far"


def test_means_are_over_blocks() -> None:
    both = mean_score([Score(1.0, 0.5, 0.1, 0.2, 1.0), Score(3.0, 1.0, 0.3, 0.4, 2.0)])
    assert both == Score(2.0, 0.75, pytest.approx(0.2), pytest.approx(0.3), 1.5)  # type: ignore[arg-type]
