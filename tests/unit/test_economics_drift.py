"""Drift between groups: by hand, and how often a further group lies inside where both variances are planted."""

from __future__ import annotations

from math import exp

import numpy as np
import pytest

from xpyd.economics.break_even import prediction_half_width
from xpyd.economics.drift import drift_of

T1, T2, T4 = 12.7062, 4.30265, 2.77645  # Student's t at 97.5 %, by degrees of freedom


def exps(*groups: tuple[float, ...]) -> list[list[float]]:
    return [[exp(value) for value in group] for group in groups]


def test_two_groups_by_hand() -> None:
    """Means 2 and 6: variance 8. Within: 2, two degrees of freedom, and half of it is in each mean."""
    found = drift_of(exps((1, 3), (5, 7)), 2)
    assert found is not None
    assert found.within == pytest.approx(2**0.5)
    assert found.between == pytest.approx((8 - 1) ** 0.5)
    assert found.off == pytest.approx(T1 * 12**0.5, rel=1e-5)
    assert found.chance == pytest.approx(T2 * 1.0, rel=1e-5)


def test_groups_that_differ_less_than_their_values_still_tell_how_far_a_group_is_off() -> None:
    """Equal means: no drift is seen, and a further group of fewer values is off by what those values scatter."""
    found = drift_of(exps((1, 3), (1, 3), (1, 3)), 1)
    assert found is not None
    assert found.between == 0
    # Half of the variance within (2, three degrees of freedom) is not in the mean of two values.
    assert found.off == pytest.approx(3.18245 * (0.5 * 2) ** 0.5, rel=1e-5)


def test_one_value_a_group_is_plain_student_and_one_group_says_nothing() -> None:
    found = drift_of(exps((1,), (2,), (3,), (4,), (5,)), 5)
    assert found is not None
    assert found.off == pytest.approx(T4 * (2.5 * 1.2) ** 0.5, rel=1e-5)
    assert (found.within, found.chance) == (0, 0)
    assert drift_of(exps((1, 2, 3)), 5) is None
    assert drift_of([], 5) is None


@pytest.mark.parametrize(("num_groups", "between"), [(3, 0.1), (5, 0.1), (5, 0.0)])
def test_a_further_group_lies_inside_as_often_as_is_said(num_groups: int, between: float) -> None:
    """2,000 planted machines: groups of four blocks that scatter by 0.05, and by ``between`` from group to group."""
    generator = np.random.default_rng(1)
    drift = generator.normal(0, between, (2000, num_groups + 1, 1))
    drawn = np.exp(drift + generator.normal(0, 0.05, (2000, num_groups + 1, 4)))
    inside = as_if_alike = 0
    for groups in drawn:
        known, further = groups[:-1].tolist(), np.log(groups[-1]).mean()
        found = drift_of(known, 4)
        assert found is not None
        off = abs(further - np.log(known).mean())
        inside += off < found.off
        as_if_alike += off < prediction_half_width(np.log(known).ravel().tolist(), 4)
    assert 0.935 < inside / 2000 < 0.965
    if between:
        assert as_if_alike / 2000 < 0.75, "blocks taken as independent promise too much"
