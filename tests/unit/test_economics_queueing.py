"""Textbook queues, and a finite block against a simulation of it (the normal sums are good to a quarter)."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from xpyd.economics.queueing import block_wait_s, erlang_c, ggc_wait_s, mg1_wait_s, mm1_wait_s, mmc_wait_s


def test_mm1() -> None:
    assert mm1_wait_s(0.8, 1.0) == pytest.approx(4.0)
    assert mm1_wait_s(0.0, 1.0) == 0


def test_erlang_c() -> None:
    assert erlang_c(1.0, 2) == pytest.approx(1 / 3)
    assert erlang_c(0.5, 1) == pytest.approx(0.5)  # one server: the utilisation
    assert erlang_c(8.0, 10) == pytest.approx(0.409, abs=0.0005)  # tables: a = 8, c = 10
    assert 0 < erlang_c(900.0, 1000) < 1


def test_mmc() -> None:
    assert mmc_wait_s(1.0, 1.0, 2) == pytest.approx(1 / 3)  # C(2, 1) / (2 - 1)
    assert mmc_wait_s(0.8, 1.0, 1) == pytest.approx(mm1_wait_s(0.8, 1.0))


def test_mg1() -> None:
    assert mg1_wait_s(0.8, 1.0, service_cv2=0.0) == pytest.approx(2.0)  # M/D/1 waits half of M/M/1
    assert mg1_wait_s(0.8, 1.0, service_cv2=1.0) == pytest.approx(mm1_wait_s(0.8, 1.0))


def test_ggc_meets_both_ends() -> None:
    assert ggc_wait_s(0.7, 1.0, 1, service_cv2=3.0) == pytest.approx(mg1_wait_s(0.7, 1.0, 3.0))
    assert ggc_wait_s(1.7, 1.0, 2) == pytest.approx(mmc_wait_s(1.7, 1.0, 2))
    assert ggc_wait_s(0.7, 1.0, 1, service_cv2=0.0, arrival_cv2=0.0) == 0


@pytest.mark.parametrize("rate_rps", [1.0, 1.5])
def test_overload_waits_for_ever(rate_rps: float) -> None:
    assert mm1_wait_s(rate_rps, 1.0) == inf
    assert mmc_wait_s(2 * rate_rps, 1.0, 2) == inf
    assert mg1_wait_s(rate_rps, 1.0, 1.0) == inf
    assert ggc_wait_s(rate_rps, 1.0, 1, service_cv2=0.0, arrival_cv2=0.0) == inf


def test_a_block_alone_in_time_waits_for_nothing() -> None:
    assert block_wait_s(1, 5.0, 1.0) == 0
    assert block_wait_s(20, 0.0, 1.0) == 0
    assert block_wait_s(20, 0.5, 1.0, service_cv2=0.0, arrival_cv2=0.0) == 0


def test_a_regular_overloaded_block_waits_by_arithmetic() -> None:
    # Every 0.5 s a request of 1 s: the k-th waits 0.5 k.
    expected = np.mean([0.5 * k for k in range(10)])
    assert block_wait_s(10, 2.0, 1.0, service_cv2=0.0, arrival_cv2=0.0) == pytest.approx(expected)


def test_a_long_block_is_the_steady_state() -> None:
    assert block_wait_s(5000, 0.5, 1.0) == pytest.approx(mm1_wait_s(0.5, 1.0))


@pytest.mark.parametrize("rate_rps", [0.6, 0.9, 1.2, 2.0])
def test_a_short_block_against_lindley(rate_rps: float) -> None:
    generator = np.random.default_rng(3)
    num_blocks, num_requests = 20_000, 24
    service = generator.exponential(1.0, size=(num_requests, num_blocks))
    between = generator.exponential(1 / rate_rps, size=(num_requests, num_blocks))
    wait = np.zeros(num_blocks)
    total = np.zeros(num_blocks)
    for k in range(1, num_requests):
        wait = np.maximum(0, wait + service[k - 1] - between[k])
        total += wait
    assert block_wait_s(num_requests, rate_rps, 1.0) == pytest.approx(total.mean() / num_requests, rel=0.25)
