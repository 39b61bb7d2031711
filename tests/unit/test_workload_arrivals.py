"""Arrival processes: the configured rate and burstiness, the distribution itself, and settings that are refused."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from scipy import stats

from xpyd.workload.arrivals import ARRIVALS, ArrivalConfig

NUM = 20_000
RATE_RPS = 40.0


def gaps_s(config: ArrivalConfig, seed: int = 1) -> np.ndarray:
    return np.diff([0, *config.offsets_ns(np.random.default_rng(seed), NUM)]) / 1e9


def test_every_kind_is_registered() -> None:
    assert set(get_args(get_type_hints(ArrivalConfig)["kind"])) == set(ARRIVALS)


def test_poisson_gaps_are_exponential_and_never_clipped() -> None:
    gaps = gaps_s(ArrivalConfig("poisson", RATE_RPS))
    assert stats.kstest(gaps, stats.expon(scale=1 / RATE_RPS).cdf).pvalue > 0.01
    assert gaps.max() > 7 / RATE_RPS  # 1 in 1100 gaps is that long: a cap of a few means would show here


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_keeps_the_rate_and_has_the_burstiness(cv: float) -> None:
    gaps = gaps_s(ArrivalConfig("gamma", RATE_RPS, cv=cv))
    assert gaps.mean() == pytest.approx(1 / RATE_RPS, abs=5 * cv / RATE_RPS / NUM**0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.06)


def test_gamma_of_cv_1_is_poisson() -> None:
    gaps = gaps_s(ArrivalConfig("gamma", RATE_RPS, cv=1.0))
    assert stats.kstest(gaps, stats.expon(scale=1 / RATE_RPS).cdf).pvalue > 0.01


def test_fixed_interval_counts_whole_nanoseconds() -> None:
    offsets = ArrivalConfig("fixed", 3.0).offsets_ns(np.random.default_rng(0), 4)
    assert offsets == [333_333_333, 666_666_667, 1_000_000_000, 1_333_333_333]


def test_closed_loop_has_no_arrival_times() -> None:
    assert ArrivalConfig("closed_loop", concurrency=4).offsets_ns(np.random.default_rng(0), 3) == [0, 0, 0]


def test_a_rate_scales_the_same_draws() -> None:
    slow = np.array(ArrivalConfig("poisson", 1.0).offsets_ns(np.random.default_rng(7), 50))
    fast = np.array(ArrivalConfig("poisson", 10.0).offsets_ns(np.random.default_rng(7), 50))
    assert np.abs(slow - 10 * fast).max() <= 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "poisson"}, "rate_rps is not set; kind=poisson needs rate_rps"),
        ({"kind": "gamma", "rate_rps": 2.0}, "cv is not set; kind=gamma needs rate_rps, cv"),
        ({"kind": "poisson", "rate_rps": 2.0, "cv": 3.0}, "cv=3.0: kind=poisson would ignore it; set it to null"),
        ({"kind": "closed_loop", "concurrency": 4, "rate_rps": 2.0}, "rate_rps=2.0: kind=closed_loop would ignore it"),
    ],
)
def test_missing_and_ignored_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArrivalConfig(**settings)
