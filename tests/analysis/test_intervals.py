"""Intervals over block pairs: degenerate samples, few pairs, and the nominal rate of an A/A comparison."""

from __future__ import annotations

import numpy as np
import pytest

from analysis.intervals import bootstrap_mean, covers_zero
from xpyd.economics.verdict import Interval


@pytest.mark.parametrize("num_pairs", [5, 8, 12])
def test_the_interval_of_no_difference_covers_zero_at_about_the_nominal_rate(num_pairs: int) -> None:
    generator = np.random.default_rng(7)
    num_trials = 200
    covered = sum(covers_zero(bootstrap_mean(generator.normal(size=num_pairs))) is True for _ in range(num_trials))
    assert 0.87 <= covered / num_trials <= 0.99


def test_a_real_difference_is_found() -> None:
    values = np.random.default_rng(1).normal(loc=3, size=8)
    found = bootstrap_mean(values)
    assert 0 < found.low < found.mid < found.high
    assert found.mid == pytest.approx(values.mean())
    assert covers_zero(found) is False


def test_fewer_than_five_pairs_carry_no_interval() -> None:
    found = bootstrap_mean([1.0, 2.0, 3.0, 4.0])
    assert found.mid == 2.5
    assert np.isnan(found.low)
    assert np.isnan(found.high)
    assert covers_zero(found) is None


def test_equal_pairs_are_an_interval_of_no_width() -> None:
    assert bootstrap_mean([2.0] * 6) == Interval(2.0, 2.0, 2.0)


def test_pairs_without_a_value_do_not_count() -> None:
    assert bootstrap_mean([1.0, np.nan, 3.0]).mid == 2.0
    assert np.isnan(bootstrap_mean([np.nan]).mid)


def test_the_same_rows_give_the_same_interval() -> None:
    values = [1.0, 5.0, 2.0, 8.0, 3.0, 2.5]
    assert bootstrap_mean(values) == bootstrap_mean(values)
