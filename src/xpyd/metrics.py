"""Every metric of the suite, one pure function each: stamps in (integer ns, client's clock), seconds out (float).

All functions work on scalars and, element by element, on arrays. Stamps may be floats with NaN where a request never
reached a stage; what follows from a NaN is NaN, never 0. ``docs/metrics.md`` compares these with other tools' names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xpyd.units import NS_PER_S

TAIL_SHARE = 0.1  # of a request's gaps, for tbt_tail_s

Stamps: TypeAlias = ArrayLike  # ns: an integer, or an array with one stamp per request
Values: TypeAlias = ArrayLike  # seconds, counts or ratios, likewise
Result: TypeAlias = Any  # a float for scalar arguments, an array of floats for arrays


def _seconds(begin_ns: Stamps, end_ns: Stamps) -> Result:
    """Subtract first, then convert: int64 stamps of a long run are too large to be exact as floats."""
    return np.subtract(end_ns, begin_ns) / NS_PER_S


def _ratio(numerator: Values, denominator: Values) -> Result:
    """``numerator / denominator``, NaN where the denominator is 0: there is nothing to compare with."""
    bottom = np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, np.where(bottom == 0, np.nan, bottom))


# Latency, as the client sees it


def ttft_s(arrived_ns: Stamps, first_token_ns: Stamps) -> Result:
    """Time to first token: ``first_token - ARRIVED``. Say which rank emitted token 0."""
    return _seconds(arrived_ns, first_token_ns)


def itl_s(tokens_ns: Stamps) -> NDArray[np.float64]:
    """Inter-token latencies of one request: ``t[i+1] - t[i]``; ``tokens_ns`` has shape [n], the result [n - 1].

    Pool them over requests for percentiles; keep the maximum per request too, since a mean hides the stalls.
    """
    return np.asarray(np.diff(np.asarray(tokens_ns)) / NS_PER_S, dtype=np.float64)


def waits_s(gaps_s: Values) -> NDArray[np.float64]:
    """The gaps that somebody waited, for percentiles: ``gaps_s`` without those of 0, shape [n - 1] or less.

    Tokens of one step (speculative decoding) reach the client together, with gaps of 0 between them. Means per token
    (``tpot_s``, ``mean_gap_s``) count those too: that is what such a step saves.
    """
    gaps = np.asarray(gaps_s, dtype=np.float64)
    waited = gaps != 0
    return gaps if waited.all() else gaps[waited]


def tpot_s(first_token_ns: Stamps, last_token_ns: Stamps, num_tokens: Values) -> Result:
    """Time per output token: ``(last token - first token) / (n - 1)``; NaN for n < 2, never 0."""
    gaps = np.asarray(num_tokens, dtype=np.float64) - 1
    return _seconds(first_token_ns, last_token_ns) / np.where(gaps < 1, np.nan, gaps)


def tbt_tail_s(gaps_s: Values, share: float = TAIL_SHARE) -> float:
    """Mean of the longest ``share`` of one request's gaps (at least one gap), shape [n - 1]; NaN without gaps.

    Mooncake's TBT (Qin et al., FAST 2025): the average of the top 10 % of a request's inter-token intervals.
    """
    gaps = np.sort(np.asarray(gaps_s, dtype=np.float64))
    if not len(gaps):
        return float("nan")
    return float(gaps[-_num_tail(len(gaps), share) :].mean())


def e2e_s(arrived_ns: Stamps, last_token_ns: Stamps) -> Result:
    """End-to-end latency: ``last token - ARRIVED``."""
    return _seconds(arrived_ns, last_token_ns)


def normalized_latency_s(arrived_ns: Stamps, last_token_ns: Stamps, num_tokens: Values) -> Result:
    """End-to-end latency per output token: ``(last token - ARRIVED) / n``; NaN for n = 0."""
    return _ratio(e2e_s(arrived_ns, last_token_ns), num_tokens)


# The transfer bill


def transfer_s(transfer_begin_ns: Stamps, transfer_end_ns: Stamps) -> Result:
    """Time on the wire: ``TRANSFER_END - TRANSFER_BEGIN`` (first span posted .. last byte landed)."""
    return _seconds(transfer_begin_ns, transfer_end_ns)


def exposed_transfer_s(prefill_end_ns: Stamps, transfer_end_ns: Stamps) -> Result:
    """What the request waits for: ``max(0, TRANSFER_END - PREFILL_END)``; the rest is hidden behind prefill."""
    return np.maximum(0.0, _seconds(prefill_end_ns, transfer_end_ns))


def overlap(transfer_s: Values, exposed_transfer_s: Values) -> Result:
    """Share of the transfer that is hidden: ``1 - exposed / transfer``; NaN where nothing was transferred.

    Negative where the transfer began late: then the request waited longer than the wire was busy.
    """
    return 1 - _ratio(exposed_transfer_s, transfer_s)


def handoff_s(prefill_end_ns: Stamps, decode_admit_ns: Stamps) -> Result:
    """From prefill to a decode batch: ``DECODE_ADMIT - PREFILL_END`` = exposed transfer + admission wait."""
    return _seconds(prefill_end_ns, decode_admit_ns)


def penalty_ratio(exposed_transfer_s: Values, prefill_s: Values) -> Result:
    """``exposed_transfer_s / prefill_s``: the number that qualifies a cluster."""
    return _ratio(exposed_transfer_s, prefill_s)


# The interference win


def interference_s(colocated_gap_s: Values, alone_gap_s: Values) -> Result:
    """What a prefill chunk adds to a gap: ``colocated gap - the same decode batch's gap with no prefill in it``."""
    return np.subtract(colocated_gap_s, alone_gap_s)


def breakeven_output_tokens(added_ttft_s: Values, saved_gap_s: Values) -> Result:
    """Output tokens after which splitting has paid for itself: ``delta TTFT / delta mean gap``.

    ``added_ttft_s`` is disaggregated minus colocated TTFT, ``saved_gap_s`` colocated minus disaggregated mean gap.
    0 where neither TTFT nor gaps grow; inf where it never pays (no gap saved); NaN where splitting is ahead at first
    and falls back later: then no number of tokens means "paid from here on".
    """
    added = np.asarray(added_ttft_s, dtype=np.float64)
    saved = np.asarray(saved_gap_s, dtype=np.float64)
    unknown = np.isnan(added) | np.isnan(saved)
    paid_at_once = (added <= 0) & (saved >= 0)
    falls_back = (added < 0) & (saved < 0)
    tokens = np.divide(added, np.where(saved > 0, saved, np.nan))
    return np.select([unknown | falls_back, paid_at_once, saved <= 0], [np.nan, 0.0, np.inf], tokens)[()]


# Service level


def meets_slo(finished: ArrayLike, ttft_s: Values, itl_s: Values, ttft_limit_s: float, itl_limit_s: float) -> Result:
    """Whether each request finished within both limits; ``itl_s`` is the request's own figure (say which: max, mean).

    A request that was dropped, failed or never ended misses, whatever it reached. One output token has no gap
    (NaN) and so none that is too long.
    """
    in_time = np.less_equal(ttft_s, ttft_limit_s)
    return np.asarray(finished, dtype=bool) & in_time & ~np.greater(itl_s, itl_limit_s)


def attainment(meets: ArrayLike) -> float:
    """Share of *offered* requests that meet the limits; ``meets`` has one entry per offered request. NaN for none."""
    flags = np.asarray(meets, dtype=bool)
    return float(flags.mean()) if flags.size else float("nan")


def goodput_rps(meets: ArrayLike, duration_s: float, num_ranks: int = 1) -> float:
    """Requests per second that meet the limits: ``sum(meets) / duration / num_ranks`` (``num_ranks``: per rank)."""
    return float(np.asarray(meets, dtype=bool).sum() / duration_s / num_ranks)


# Millions of rows at once

PART = 2**18  # rows that are worked on together: what lies between stays in the cache, and no fresh memory is asked for


@dataclass(frozen=True)
class Gaps:
    """The gaps of many requests: those of request r are ``seconds[starts[r] : starts[r + 1]]``.

    ``starts`` has shape [num_requests + 1], ``seconds`` [num_gaps].
    """

    starts: NDArray[np.int64]
    seconds: NDArray[np.float64]

    def of(self, requests: NDArray[np.int64]) -> NDArray[np.float64]:
        """The gaps of these requests, one request after the other."""
        firsts = requests[np.diff(requests, prepend=-2) != 1]  # neighbours lie together: one piece
        lasts = requests[np.diff(requests, append=-2) != 1]
        bounds = zip(self.starts[firsts].tolist(), self.starts[lasts + 1].tolist(), strict=True)
        return np.concatenate([self.seconds[:0], *(self.seconds[begin:end] for begin, end in bounds)])


def stretches(starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first, one after the last) of neighbouring requests with about ``PART`` entries together, until all are said."""
    bounds = np.unique(np.searchsorted(starts[:-1], np.arange(0, starts[-1] + PART, PART)))
    return pairwise(bounds.tolist())


def places(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``begins[i] .. begins[i] + counts[i] - 1`` of every i, one run after the other; shape [counts.sum()]."""
    return np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def gaps_by_request(starts: NDArray[np.int64], t_ns: Stamps) -> Gaps:
    """The gaps of every request at once; the tokens of request r are ``t_ns[starts[r] : starts[r + 1]]``, by time."""
    at_ns = np.asarray(t_ns)
    bounds = np.concatenate(([0], np.cumsum(np.maximum(np.diff(starts) - 1, 0))))
    seconds = np.empty(bounds[-1])
    for first, last in stretches(starts):
        own = starts[first : last + 1] - starts[first]
        inner = np.ones(own[-1], dtype=bool)
        inner[own[1:][own[1:] > 0] - 1] = False  # from one request's last token to the next one's first is no gap
        seconds[bounds[first] : bounds[last]] = itl_s(at_ns[starts[first] : starts[last]])[inner[:-1]]
    return Gaps(bounds, seconds)


def mean_gap_by_request(gaps: Gaps) -> NDArray[np.float64]:
    """The mean gap of every request, shape [num_requests]; NaN for one without gaps."""
    return np.asarray(_ratio(_over_requests(np.add, gaps), np.diff(gaps.starts)))


def max_gap_by_request(gaps: Gaps) -> NDArray[np.float64]:
    """The longest gap of every request, shape [num_requests]; NaN for one without gaps."""
    return _over_requests(np.maximum, gaps)


def tbt_tail_by_request(gaps: Gaps, share: float = TAIL_SHARE) -> NDArray[np.float64]:
    """:func:`tbt_tail_s` of every request at once, shape [num_requests]; NaN for one without gaps."""
    counts = np.diff(gaps.starts)
    found = np.full(len(counts), np.nan)
    alike = np.argsort(counts, kind="stable")  # requests with as many gaps are a matrix: no loop over millions
    for count, first, last in _runs(counts[alike]):
        if count:
            num_tail, at_once = _num_tail(count, share), max(1, PART // count)
            for begin in range(first, last, at_once):
                requests = alike[begin : min(begin + at_once, last)]
                seconds = gaps.of(requests).reshape(-1, count)
                seconds.partition(count - num_tail, axis=1)
                found[requests] = seconds[:, count - num_tail :].mean(axis=1)
    return found


def _runs(values: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(value, first, one after the last) of every stretch of equal ones."""
    bounds = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for first, last in pairwise(bounds):
        if first < last:
            yield int(values[first]), first, last


def _over_requests(reduce: np.ufunc, gaps: Gaps) -> NDArray[np.float64]:
    some = np.diff(gaps.starts) > 0
    found = np.full(len(some), np.nan)
    if some.any():
        found[some] = reduce.reduceat(gaps.seconds, gaps.starts[:-1][some])
    return found


def _num_tail(num_gaps: int, share: float) -> int:
    """How many gaps are the longest ``share``, rounded up; the small step back keeps 0.1 * 30 at 3."""
    return min(num_gaps, max(1, math.ceil(num_gaps * share - 1e-9)))
