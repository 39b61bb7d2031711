"""Intervals of paired differences: the unit of resampling is a block pair, never a request or a token.

Tokens and requests of one block share its queue, its neighbours and its minute of the machine; resampling them would
call a lucky block a sure result. With few pairs the plain percentile bootstrap is too narrow, so its tails are widened
to Student's t ("expanded percentile interval", Hesterberg, The American Statistician 69(4), 2015, section 5.3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit  # scipy.stats, which has a bootstrap, takes a second to import

from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Interval

CONFIDENCE = 0.95
NUM_RESAMPLES = 9999
SEED = 20260101  # fixed: the same rows give the same table


def bootstrap_mean(values: Any) -> Interval:
    """The mean over block pairs and its 95 % interval; ``values`` has shape [num_pairs], NaN where a pair has none.

    Fewer than five pairs carry no interval: low and high are NaN. All pairs equal: the interval is that value.
    """
    known = _known(values)
    if not len(known):
        return Interval(np.nan, np.nan, np.nan)
    mid = float(known.mean())
    if not np.isfinite(known).all() or len(known) < MIN_BLOCK_PAIRS:
        return Interval(np.nan, mid, np.nan)
    if np.ptp(known) == 0:
        return Interval(mid, mid, mid)
    return _interval(_resampled_means(known)[0], mid, len(known))


def mean_among(values: Any, num_lines: int) -> Interval:
    """As ``bootstrap_mean``, but wider: with those of ``num_lines`` lines it holds for all of them at once, at 95 %.

    Bonferroni's inequality, on Student's t: the tails of so few resamples are not as thin as many lines need.
    """
    own = bootstrap_mean(values)
    if not own.known or own.low == own.high:
        return own
    known = _known(values)
    error = known.std(ddof=1) / np.sqrt(len(known))
    half = float(stdtrit(len(known) - 1, 1 - (1 - CONFIDENCE) / (2 * num_lines)) * error)
    return Interval(own.mid - half, own.mid, own.mid + half)


def bootstrap_difference(values: Any, base: Any) -> Interval:
    """``mean(values) - mean(base)`` of two runs' blocks, which nothing pairs, and its 95 % interval.

    Fewer than five blocks on either side carry no interval.
    """
    ours, theirs = _known(values), _known(base)
    if not len(ours) or not len(theirs):
        return Interval(np.nan, np.nan, np.nan)
    mid = float(ours.mean() - theirs.mean())
    fewest = min(len(ours), len(theirs))
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()) or fewest < MIN_BLOCK_PAIRS:
        return Interval(np.nan, mid, np.nan)
    if np.ptp(ours) == 0 and np.ptp(theirs) == 0:
        return Interval(mid, mid, mid)
    our_means, their_means = _resampled_means(ours, theirs)
    return _interval(our_means - their_means, mid, fewest)


def covers_zero(interval: Interval) -> bool | None:
    """Whether the interval holds zero; None where there is no interval."""
    if not interval.known:
        return None
    return bool(interval.low <= 0 <= interval.high)


def _known(values: Any) -> NDArray[np.float64]:
    """Those that are no NaN."""
    found = np.asarray(values, dtype=np.float64)
    return found[~np.isnan(found)]


def _resampled_means(*samples: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """The mean of every resample of each sample, shape [NUM_RESAMPLES]."""
    drawn = _draws(*map(len, samples))
    return [sample[rows].mean(axis=-1) for sample, rows in zip(samples, drawn, strict=True)]


@lru_cache(maxsize=1)  # a table's lines ask for the same again and again
def _draws(*sizes: int) -> list[NDArray[np.int64]]:
    """Which rows every resample takes, shape [NUM_RESAMPLES, size] for each size."""
    generator = np.random.default_rng(SEED)
    return [generator.integers(0, size, (NUM_RESAMPLES, size)) for size in sizes]


def _interval(resampled: NDArray[np.float64], mid: float, num_pairs: int) -> Interval:
    """Between the percentiles with ``CONFIDENCE`` coverage: tails ``Phi(-sqrt(n / (n - 1)) * t)``."""
    t = stdtrit(num_pairs - 1, 0.5 + CONFIDENCE / 2)
    tail = ndtr(-np.sqrt(num_pairs / (num_pairs - 1)) * t)
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(low), mid, float(high))
