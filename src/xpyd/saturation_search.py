"""The search for an arm's saturation point: the highest rate of arrivals at which it still meets the limits. Pure.

First a ladder, each rung ``growth`` times the one before, until the arm misses the target or ``max_rps`` is reached
(downwards where it misses at once); then bisection of the last gap, on a logarithmic scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le, Lt

MIN_SHARE_OF_START = 1 / 64  # the ladder gives up downwards here: then something else is wrong than the rate


@dataclass(frozen=True)
class Bracket:
    """What is known of a saturation point: sustained at ``low_rps``, missed at ``high_rps``; None: no such rate met."""

    low_rps: float | None
    high_rps: float | None


@dataclass(frozen=True)
class SaturationSearch:
    """``attainment`` is the share of offered requests within the limits that a sustained rate reaches.

    ``precision``: bisection ends when the two rates around the point are no further apart than this share. Each rate is
    played ``num_repeats`` times by each arm that asks for it. Arrivals go on for ``block_s`` at least: a burst that is
    over before a queue has built up saturates nothing.
    """

    start_rps: Annotated[float, Gt(0)]
    max_rps: Annotated[float, Gt(0)]
    growth: Annotated[float, Gt(1)]
    attainment: Annotated[float, Gt(0), Le(1)]
    precision: Annotated[float, Gt(0), Lt(1)]
    block_s: Annotated[float, Gt(0)]
    num_repeats: Annotated[int, Gt(0)]

    def __post_init__(self) -> None:
        if self.max_rps < self.start_rps:
            raise ValueError(f"max_rps={self.max_rps} is below start_rps={self.start_rps}; raise it or lower the start")

    def num_requests(self, rate_rps: float, at_least: int) -> int:
        """Requests of a block at this rate; ``at_least``: the workload's own number."""
        return max(at_least, math.ceil(rate_rps * self.block_s))

    def bracket(self, attained: Mapping[float, float]) -> Bracket:
        """Around the point, from the mean attainment at each rate played.

        Where noise makes a higher rate pass and a lower one fail, the lowest that failed counts.
        """
        high = min((rate for rate, share in attained.items() if share < self.attainment), default=None)
        below = [rate for rate in attained if high is None or rate < high]
        return Bracket(max(below, default=None), high)

    def next_rate(self, attained: Mapping[float, float]) -> float | None:
        """The rate to play next; None at the end. Rates are rounded to three digits: they stand in tables."""
        if not attained:
            return self.start_rps
        found = self.bracket(attained)
        if found.high_rps is None:
            assert found.low_rps is not None
            return _rounded(min(found.low_rps * self.growth, self.max_rps)) if found.low_rps < self.max_rps else None
        if found.low_rps is None:
            lower = found.high_rps / self.growth
            return _rounded(lower) if lower >= self.start_rps * MIN_SHARE_OF_START else None
        if found.high_rps / found.low_rps <= 1 + self.precision:
            return None
        between = _rounded(math.sqrt(found.low_rps * found.high_rps))
        return between if found.low_rps < between < found.high_rps else None

    def beyond(self, attained: Mapping[float, float], held: bool, lost: bool) -> float | None:
        """A rung further out than any played: below where the lowest was not ``held``, else above one not ``lost``."""
        lower, higher = _rounded(min(attained) / self.growth), _rounded(max(attained) * self.growth)
        if not held and lower >= self.start_rps * MIN_SHARE_OF_START:
            return lower
        return higher if not lost and higher <= self.max_rps else None

    def rates_left(self, attained: Mapping[float, float]) -> int:
        """How many rates are still to be played, at least: while the ladder climbs nobody knows how high it leads."""
        if self.next_rate(attained) is None:
            return 0
        found = self.bracket(attained)
        known = found.low_rps is not None and found.high_rps is not None
        gap = found.high_rps / found.low_rps if found.low_rps and found.high_rps else self.growth
        halvings = math.ceil(math.log2(max(1.0, math.log(gap) / math.log1p(self.precision))))
        return max(1, halvings if known else 1 + halvings)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
