"""Intervals over block pairs: degenerate samples, few pairs, and the nominal rate of an A/A comparison."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analysis import intervals
from analysis.intervals import bootstrap_difference, bootstrap_mean, covers_zero, mean_among
from xpyd.economics.verdict import Interval


@pytest.mark.parametrize("num_pairs", [5, 8, 12])
def test_the_interval_of_no_difference_covers_zero_at_about_the_nominal_rate(num_pairs: int) -> None:
    generator = np.random.default_rng(7)
    num_trials = 200
    covered = sum(covers_zero(bootstrap_mean(generator.normal(size=num_pairs))) is True for _ in range(num_trials))
    assert 0.87 <= covered / num_trials <= 0.99


def test_the_intervals_of_many_lines_hold_at_once_at_about_the_nominal_rate() -> None:
    generator = np.random.default_rng(7)
    tables = [generator.normal(size=(14, 10)) for _ in range(200)]
    alone = sum(all(covers_zero(bootstrap_mean(line)) for line in table) for table in tables)
    at_once = sum(all(covers_zero(mean_among(line, 14)) for line in table) for table in tables)
    assert alone / len(tables) < 0.65  # 0.95 ** 14 is a half
    assert at_once / len(tables) >= 0.92


def test_of_one_line_it_is_students_interval_and_of_more_it_is_wider() -> None:
    values = np.random.default_rng(3).normal(loc=3, size=9)
    one, ten = mean_among(values, 1), mean_among(values, 10)
    low, high = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert (one.low, one.high) == pytest.approx((low, high))
    assert ten.low < one.low < one.mid == ten.mid < one.high < ten.high
    assert mean_among([2.0] * 6, 10) == Interval(2.0, 2.0, 2.0)
    assert not mean_among([1.0, 2.0], 10).known


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


@pytest.mark.parametrize("size", [5, 9, 40])
def test_the_bootstrap_is_the_one_of_scipy(size: int) -> None:
    generator = np.random.default_rng(size)
    ours, theirs = generator.lognormal(size=size), generator.normal(size=5)

    def scipys(*samples: np.ndarray) -> tuple[float, float]:
        fewest = min(map(len, samples))
        z = np.sqrt(fewest / (fewest - 1)) * stats.t.ppf(0.975, fewest - 1)
        found = stats.bootstrap(
            samples,
            lambda a, b=None, axis=-1: np.mean(a, axis) - (0 if b is None else np.mean(b, axis)),
            confidence_level=1 - 2 * stats.norm.cdf(-z),
            n_resamples=intervals.NUM_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(intervals.SEED),
        ).confidence_interval
        return float(found.low), float(found.high)

    for found, expected in (
        (bootstrap_mean(ours), scipys(ours)),
        (bootstrap_difference(ours, theirs), scipys(ours, theirs)),
    ):
        assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
