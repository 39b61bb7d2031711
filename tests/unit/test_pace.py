"""The client's sleeps between two looks: a share of a step, whatever else comes, and never the same length twice."""

from __future__ import annotations

from itertools import pairwise
from statistics import median

import pytest

from xpyd.worker.pace import LEAST_S, LOOKS_PER_STEP, MOST_S, Pace

MS = 1_000_000
DECODE, PREFILL = 1, 2


def paced(step_ns: int, num_steps: int = 5) -> Pace:
    pace = Pace()
    for turn in range(num_steps):
        pace.heard(DECODE, turn * step_ns)
    return pace


def usual_s(pace: Pace) -> float:
    return median(pace.sleep_s() for _ in range(101))


@pytest.mark.parametrize(
    ("step_ms", "expected_s"), [(2, 0.002 / LOOKS_PER_STEP), (0.1, LEAST_S), (30, MOST_S), (0, LEAST_S)]
)
def test_a_sleep_is_a_share_of_a_step_within_bounds(step_ms: float, expected_s: float) -> None:
    assert usual_s(paced(round(step_ms * MS))) == pytest.approx(expected_s, rel=0.02)


def test_before_any_step_is_known_looks_are_close() -> None:
    assert usual_s(Pace()) == pytest.approx(LEAST_S, rel=0.02)
    assert usual_s(paced(2 * MS, num_steps=1)) == pytest.approx(LEAST_S, rel=0.02)


def test_the_shortest_steps_count_and_each_rank_has_its_own() -> None:
    pace = paced(2 * MS)
    for turn in range(1, 5):  # a prompt's first tokens, between those of the decodes
        pace.heard(PREFILL, 10_000 * MS + turn * 90 * MS)
    assert usual_s(pace) == pytest.approx(0.002 / LOOKS_PER_STEP, rel=0.3)


def test_longer_steps_are_learnt() -> None:
    pace = paced(1 * MS)
    for turn in range(60):
        pace.heard(DECODE, 100 * MS + turn * 3 * MS)
    assert usual_s(pace) == pytest.approx(0.003 / LOOKS_PER_STEP, rel=0.05)


def test_a_request_is_not_kept_waiting() -> None:
    pace = paced(2 * MS)
    assert pace.sleep_s(due_s=1e-5) == 1e-5
    assert pace.sleep_s(due_s=-1.0) == 0.0


def test_the_median_gap_is_not_a_number_of_looks() -> None:
    """Of steps of 1.9 ms, seen at the first look behind each: equal sleeps of an eighth make it 1.75 or 2.0 ms."""
    step_s = 0.0019
    pace = paced(2 * MS)
    seen, looked_s = [], 0.0
    for turn in range(1, 2001):
        while looked_s < turn * step_s:
            looked_s += pace.sleep_s()
        seen.append(looked_s)
    gaps = [after - before for before, after in pairwise(seen)]
    assert median(gaps) == pytest.approx(step_s, rel=0.02)
    assert max(gaps) - step_s < 1.5 * step_s / LOOKS_PER_STEP * 1.06
