"""Arrival processes: when each request is due. Open loop, and never clipped, so that the configured rate is the rate.

The gap before the first request is drawn like every other one, so n requests span n gaps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from annotated_types import Gt, Lt
from numpy.typing import NDArray

from xpyd.units import NS_PER_S
from xpyd.workload.kinds import build_kind

Positive = Annotated[float, Gt(0), Lt(float("inf"))]


class Arrivals(Protocol):
    def gaps_s(self, generator: np.random.Generator, num: int) -> NDArray[np.float64]:
        """Seconds before each of ``num`` requests, shape [num]."""


@dataclass(frozen=True)
class Poisson:
    """Independent users: exponential gaps of mean 1 / rate."""

    rate_rps: float

    def gaps_s(self, generator: np.random.Generator, num: int) -> NDArray[np.float64]:
        return generator.exponential(1 / self.rate_rps, num)


@dataclass(frozen=True)
class Gamma:
    """Bursty (cv > 1) or regular (cv < 1) traffic: gamma gaps of mean 1 / rate; cv = 1 is Poisson.

    ``cv`` is the gaps' standard deviation over their mean: shape = 1 / cv^2, scale = cv^2 / rate.
    """

    rate_rps: float
    cv: float

    def gaps_s(self, generator: np.random.Generator, num: int) -> NDArray[np.float64]:
        return generator.gamma(self.cv**-2, self.cv**2 / self.rate_rps, num)


@dataclass(frozen=True)
class FixedInterval:
    """A metronome: every gap is 1 / rate."""

    rate_rps: float

    def gaps_s(self, generator: np.random.Generator, num: int) -> NDArray[np.float64]:
        return np.full(num, 1 / self.rate_rps)


@dataclass(frozen=True)
class ClosedLoop:
    """No arrival times: ``concurrency`` requests are always under way, and the next is due when one ends."""

    concurrency: int

    def gaps_s(self, generator: np.random.Generator, num: int) -> NDArray[np.float64]:
        return np.zeros(num)


ARRIVALS: dict[str, type[Arrivals]] = {
    "poisson": Poisson,
    "gamma": Gamma,
    "fixed": FixedInterval,
    "closed_loop": ClosedLoop,
}


@dataclass(frozen=True)
class ArrivalConfig:
    """The arrival process. Each kind reads its own settings; the others must be null."""

    kind: Literal["poisson", "gamma", "fixed", "closed_loop"]
    rate_rps: Positive | None = None
    cv: Positive | None = None
    concurrency: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Arrivals:
        """The process. Raises ValueError for a setting that is missing or would be ignored."""
        arrivals: Arrivals = build_kind(self, ARRIVALS)
        return arrivals

    def offsets_ns(self, generator: np.random.Generator, num: int) -> list[int]:
        """When each of ``num`` requests is due, in ns from the block's begin, ascending."""
        due_s = np.cumsum(self.build().gaps_s(generator, num))
        offsets: list[int] = np.rint(due_s * NS_PER_S).astype(np.int64).tolist()
        return offsets
