"""The search of ``tune_colocated``: the grid, who is better, who goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from xpyd.colocated_search import ColocatedSearch, name_of, ranked
from xpyd.scheduler.config import SchedulerConfig
from xpyd.score import Score

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


def test_who_has_nothing_to_measure_comes_last() -> None:
    nothing = Score(0.0, 0.0, math.nan, math.nan, math.nan)
    assert ranked({"nothing": nothing, "slow": Score(0.0, 0.0, 9.0, 9.0, 9.0)}, ("itl_p99_s",), 0.02)[-1] == "nothing"


def scores(**goodput_and_gap: tuple[float, float]) -> dict[str, Score]:
    return {name: Score(rps, 1.0, gap, 0.1, 1.0) for name, (rps, gap) in goodput_and_gap.items()}


def test_the_second_measure_decides_among_those_that_tie() -> None:
    given = scores(most=(10.0, 0.3), near=(9.1, 0.1), nearer=(9.5, 0.2), far=(8.0, 0.01))
    assert ranked(given, ("goodput_rps", "itl_p99_s"), 0.1) == ["near", "nearer", "most", "far"]
    assert ranked(given, ("goodput_rps", "itl_p99_s"), 0.0) == ["most", "nearer", "near", "far"]
    assert ranked(given, ("itl_p99_s",), 0.1)[0] == "far"
    assert ranked(given, ("itl_p99_s", "goodput_rps"), 0.0)[0] == "far"
