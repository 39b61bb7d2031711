"""Intervals of paired differences: the unit of resampling is a block pair, never a request or a token.

Tokens and requests of one block share its queue, its neighbours and its minute of the machine; resampling them would
call a lucky block a sure result. With few pairs the plain percentile bootstrap is too narrow, so its tails are widened
to Student's t ("expanded percentile interval", Hesterberg, The American Statistician 69(4), 2015, section 5.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Interval

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
SEED = 20260101  # fixed: the same rows give the same table


def bootstrap_mean(values: Any) -> Interval:
    """The mean over block pairs and its 95 % interval; ``values`` has shape [num_pairs], NaN where a pair has none.

    Fewer than five pairs carry no interval: low and high are NaN. All pairs equal: the interval is that value.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return Interval(np.nan, np.nan, np.nan)
    mid = float(known.mean())
    if not np.isfinite(known).all() or len(known) < MIN_BLOCK_PAIRS:
        return Interval(np.nan, mid, np.nan)
    if np.ptp(known) == 0:
        return Interval(mid, mid, mid)
    found = stats.bootstrap(
        (known,),
        np.mean,
        confidence_level=_expanded_level(len(known)),
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(float(found.low), mid, float(found.high))


def bootstrap_difference(values: Any, base: Any) -> Interval:
    """``mean(values) - mean(base)`` of two runs' blocks, which nothing pairs, and its 95 % interval.

    Fewer than five blocks on either side carry no interval.
    """
    ours, theirs = (np.asarray(side, dtype=np.float64) for side in (values, base))
    ours, theirs = ours[~np.isnan(ours)], theirs[~np.isnan(theirs)]
    if not len(ours) or not len(theirs):
        return Interval(np.nan, np.nan, np.nan)
    mid = float(ours.mean() - theirs.mean())
    fewest = min(len(ours), len(theirs))
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()) or fewest < MIN_BLOCK_PAIRS:
        return Interval(np.nan, mid, np.nan)
    if np.ptp(ours) == 0 and np.ptp(theirs) == 0:
        return Interval(mid, mid, mid)
    found = stats.bootstrap(
        (ours, theirs),
        lambda a, b, axis=-1: np.mean(a, axis) - np.mean(b, axis),
        confidence_level=_expanded_level(fewest),
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Interval(float(found.low), mid, float(found.high))


def covers_zero(interval: Interval) -> bool | None:
    """Whether the interval holds zero; None where there is no interval."""
    if not interval.known:
        return None
    return bool(interval.low <= 0 <= interval.high)


def _expanded_level(num_pairs: int) -> float:
    """The percentile level that gives ``CONFIDENCE`` coverage: tails ``Phi(-sqrt(n / (n - 1)) * t)``."""
    t = stats.t.ppf(0.5 + CONFIDENCE / 2, num_pairs - 1)
    return float(1 - 2 * stats.norm.cdf(-np.sqrt(num_pairs / (num_pairs - 1)) * t))
