"""Intervals of frozen figures, by hand: what is common to both arms cancels in their ratio, and the rest does not."""

from __future__ import annotations

from math import exp, hypot, isnan

import pytest

from xpyd.economics.drift import Drift
from xpyd.economics.ranges import Modeled, arm_range, ratio_range

DRIFT = Drift(between=0.1, within=0.05, off=0.2, chance=0.03)
CHANCE = 12.7062 * 2**0.5  # of blocks 1 and 3: see test_break_even


def modeled(usual: float, elasticity: float, blocks: tuple[float, ...] = (1.0, 1.0)) -> Modeled:
    """A figure that changes by so many per cent with one per cent of the machine's speed."""
    return Modeled(blocks, usual, *(usual * exp(sign * elasticity * DRIFT.off) for sign in (-1, 1)))


def test_the_machine_and_chance_add_as_squares() -> None:
    low, high = arm_range(Modeled((1.0, 3.0), 2.0, 1.0, 5.0))
    assert (low, high) == (pytest.approx(2 - hypot(1, CHANCE), rel=1e-5), pytest.approx(2 + hypot(3, CHANCE), rel=1e-5))
    assert arm_range(Modeled((2.0, 2.0), 2.0, 2.5, 1.5)) == (1.5, 2.5), "a faster machine may raise a figure"


def test_a_drift_of_both_arms_cancels_in_their_ratio_and_blocks_of_their_own_do_not() -> None:
    low, high = ratio_range(modeled(6.0, 1.0), modeled(2.0, 1.0), DRIFT)
    assert (3 - low, high - 3) == (pytest.approx(3 * 0.03 * 2**0.5), pytest.approx(3 * 0.03 * 2**0.5))
    low, high = ratio_range(modeled(6.0, 1.0), modeled(2.0, 0.0), DRIFT)
    assert high - 3 == pytest.approx(hypot(3 * (exp(0.2) - 1), 3 * 0.03)), "an arm that the machine does not change"
    low, high = ratio_range(modeled(6.0, 0.0, (3.0, 9.0)), modeled(2.0, 0.0, (3.0, 3.0)), DRIFT)
    assert high - 3 == pytest.approx(CHANCE, rel=1e-5), "pairs of 1 and 3"


def test_nothing_is_said_of_a_ratio_to_zero() -> None:
    assert all(map(isnan, ratio_range(modeled(1.0, 1.0), Modeled((0.0, 0.0), 0.0, 0.0, 0.0), DRIFT)))
