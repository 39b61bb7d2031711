"""Every metric against a figure worked out by hand."""

from __future__ import annotations

from itertools import pairwise
from math import inf, isnan, nan

import numpy as np
import pytest

from xpyd import metrics

MS = 1_000_000
# One request: arrives at 5 ms; prefill 10..30; transfer 25..36; admitted 40; tokens at 31, 45, 55, 95.
TOKENS = np.array([31, 45, 55, 95]) * MS


def test_client_latencies() -> None:
    assert metrics.ttft_s(5 * MS, 31 * MS) == pytest.approx(0.026)
    assert metrics.itl_s(TOKENS) == pytest.approx([0.014, 0.010, 0.040])
    assert metrics.tpot_s(31 * MS, 95 * MS, 4) == pytest.approx(0.064 / 3)
    assert metrics.e2e_s(5 * MS, 95 * MS) == pytest.approx(0.090)
    assert metrics.normalized_latency_s(5 * MS, 95 * MS, 4) == pytest.approx(0.0225)


def test_arrays_and_unreached_stages() -> None:
    ttft = metrics.ttft_s(np.array([0.0, 0.0]), np.array([2.0 * MS, nan]))
    assert ttft == pytest.approx([0.002, nan], nan_ok=True)
    tpot = metrics.tpot_s(np.array([0, 0, 0]), np.array([9, 0, 0]) * MS, np.array([4, 1, 0]))
    assert tpot == pytest.approx([0.003, nan, nan], nan_ok=True)
    assert isnan(metrics.normalized_latency_s(0, 0, 0))


def test_int64_stamps_lose_nothing() -> None:
    late = 2**62  # as a float, neighbours are 512 ns apart
    assert metrics.ttft_s(np.array([late]), np.array([late + 1]))[0] == 1e-9


@pytest.mark.parametrize(("num_gaps", "num_tail"), [(1, 1), (9, 1), (10, 1), (11, 2), (30, 3), (31, 4)])
def test_tail_is_the_longest_tenth(num_gaps: int, num_tail: int) -> None:
    gaps = np.arange(1.0, num_gaps + 1)
    expected = gaps[-num_tail:].mean()
    assert metrics.tbt_tail_s(gaps[::-1]) == pytest.approx(expected)
    together = metrics.tbt_tail_by_request(metrics.Gaps(np.array([0, num_gaps]), gaps[::-1]))
    assert together == pytest.approx([expected])


def test_a_share_that_rounds_up_in_binary_takes_no_extra_gap() -> None:
    assert 0.07 * 100 > 7
    assert metrics.tbt_tail_s(np.arange(100.0), share=0.07) == pytest.approx(np.arange(93, 100).mean())


def test_tail_without_gaps_is_unknown() -> None:
    assert isnan(metrics.tbt_tail_s([]))
    assert isnan(metrics.tbt_tail_by_request(metrics.Gaps(np.array([0, 0]), np.zeros(0)))[0])
    assert len(metrics.tbt_tail_by_request(metrics.Gaps(np.array([0]), np.zeros(0)))) == 0


def test_transfer_and_handoff() -> None:
    assert metrics.transfer_s(25 * MS, 36 * MS) == pytest.approx(0.011)
    assert metrics.exposed_transfer_s(30 * MS, 36 * MS) == pytest.approx(0.006)
    assert metrics.exposed_transfer_s(30 * MS, 29 * MS) == 0
    assert metrics.overlap(0.011, 0.006) == pytest.approx(5 / 11)
    assert metrics.overlap(0.011, 0.022) == pytest.approx(-1)
    assert isnan(metrics.overlap(0.0, 0.0))
    assert metrics.handoff_s(30 * MS, 40 * MS) == pytest.approx(0.010)
    assert metrics.penalty_ratio(0.006, 0.020) == pytest.approx(0.3)
    assert isnan(metrics.penalty_ratio(0.006, 0.0))


def test_interference_is_the_gap_less_the_same_batch_alone() -> None:
    assert metrics.interference_s(0.035, 0.010) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("added_ttft_s", "saved_gap_s", "tokens"),
    [
        (0.2, 0.01, 20.0),
        (0.2, 0.0, inf),
        (0.2, -0.01, inf),
        (-0.2, 0.01, 0.0),
        (-0.2, 0.0, 0.0),
        (0.0, 0.0, 0.0),
        (-0.2, -0.01, nan),
        (nan, 0.01, nan),
        (0.2, nan, nan),
    ],
)
def test_breakeven_output_tokens(added_ttft_s: float, saved_gap_s: float, tokens: float) -> None:
    assert metrics.breakeven_output_tokens(added_ttft_s, saved_gap_s) == pytest.approx(tokens, nan_ok=True)
    both = metrics.breakeven_output_tokens([added_ttft_s, 1.0], [saved_gap_s, 0.5])
    assert both == pytest.approx([tokens, 2.0], nan_ok=True)


def test_goodput_counts_offered_requests() -> None:
    finished = [True, True, True, True, False, False]
    ttft = [0.1, 0.3, 0.1, 0.1, 0.1, nan]  # fine, late, stalls, one token only, failed, dropped
    worst_gap = [0.02, 0.02, 0.09, nan, 0.02, nan]
    meets = metrics.meets_slo(finished, ttft, worst_gap, ttft_limit_s=0.2, itl_limit_s=0.05)
    assert meets.tolist() == [True, False, False, True, False, False]
    assert metrics.attainment(meets) == pytest.approx(2 / 6)
    assert metrics.goodput_rps(meets, duration_s=4.0) == pytest.approx(0.5)
    assert metrics.goodput_rps(meets, duration_s=4.0, num_ranks=2) == pytest.approx(0.25)
    assert isnan(metrics.attainment([]))


def test_a_finished_request_without_a_first_token_misses() -> None:
    assert not metrics.meets_slo(True, nan, nan, 0.2, 0.05)


@pytest.mark.parametrize("part", [1, 4, metrics.PART])
def test_grouped_gaps_never_cross_requests(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PART", part)
    starts = np.array([0, 0, 3, 4, 4, 6, 6])
    t_ns = np.array([10, 12, 17, 4, 20, 21]) * MS
    gaps = metrics.gaps_by_request(starts, t_ns)
    assert gaps.starts.tolist() == [0, 0, 2, 2, 2, 3, 3]
    assert gaps.seconds == pytest.approx([0.002, 0.005, 0.001])
    assert gaps.of(np.array([4, 1])) == pytest.approx([0.001, 0.002, 0.005])
    assert gaps.of(np.array([0, 1, 4])) == pytest.approx([0.002, 0.005, 0.001])
    assert not len(gaps.of(np.array([], dtype=np.int64)))
    assert metrics.max_gap_by_request(gaps) == pytest.approx([nan, 0.005, nan, nan, 0.001, nan], nan_ok=True)
    assert metrics.mean_gap_by_request(gaps) == pytest.approx([nan, 0.0035, nan, nan, 0.001, nan], nan_ok=True)


@pytest.mark.parametrize("part", [1, 4, metrics.PART])
def test_grouped_tail_equals_one_by_one(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "PART", part)
    generator = np.random.default_rng(0)
    starts = np.concatenate(([0], np.cumsum(generator.integers(0, 30, size=200))))
    t_ns = generator.integers(1, 50 * MS, size=starts[-1]).cumsum()
    tails = metrics.tbt_tail_by_request(metrics.gaps_by_request(starts, t_ns))
    one_by_one = [metrics.tbt_tail_s(metrics.itl_s(t_ns[a:b])) for a, b in pairwise(starts)]
    assert tails == pytest.approx(one_by_one, nan_ok=True)


def test_tokens_of_one_step_are_waited_for_once() -> None:
    """The case of docs/metrics.md: three tokens come together."""
    gaps = metrics.itl_s([0, 10 * MS, 10 * MS, 10 * MS, 25 * MS])
    assert metrics.waits_s(gaps).tolist() == [0.010, 0.015]
    assert metrics.tpot_s(0, 25 * MS, 5) == pytest.approx(0.00625)
    assert metrics.waits_s([0.0, 0.0]).tolist() == []
