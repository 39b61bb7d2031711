"""Length distributions, in tokens: whole numbers of at least 1, drawn and never clipped (no pile-up at a limit)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, Literal, Protocol

import numpy as np
from annotated_types import Gt, Le
from numpy.typing import NDArray

from xpyd.workload.kinds import build_kind

Tokens = Annotated[int, Gt(0)]


class Lengths(Protocol):
    def draw(self, generator: np.random.Generator, num: int) -> NDArray[np.int64]:
        """``num`` lengths, shape [num]."""

    def mean(self) -> float:
        """The exact mean of what ``draw`` gives."""

    def longest(self) -> int:
        """The largest length that ``draw`` can give."""


@dataclass(frozen=True)
class Fixed:
    """Always ``tokens``."""

    tokens: int

    def draw(self, generator: np.random.Generator, num: int) -> NDArray[np.int64]:
        return np.full(num, self.tokens, dtype=np.int64)

    def mean(self) -> float:
        return float(self.tokens)

    def longest(self) -> int:
        return self.tokens


@dataclass(frozen=True)
class Uniform:
    """Every whole number from ``low`` to ``high``, both included, equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low={self.low} is above high={self.high}; swap them")

    def draw(self, generator: np.random.Generator, num: int) -> NDArray[np.int64]:
        return generator.integers(self.low, self.high, num, endpoint=True)

    def mean(self) -> float:
        return (self.low + self.high) / 2

    def longest(self) -> int:
        return self.high


@dataclass(frozen=True)
class Lognormal:
    """Many short, few long: ``exp(normal(ln(median), sigma))``, rounded to whole tokens.

    A draw outside 1..max_len is drawn again, which gives the lognormal conditioned on that range: its shape is kept,
    its mean falls, and ``mean`` says to what. ``median`` is that of the distribution before conditioning.
    """

    median: float
    sigma: float
    max_len: int

    def __post_init__(self) -> None:
        if not 1 <= self.median <= self.max_len:
            raise ValueError(
                f"median={self.median} is outside 1..max_len={self.max_len}: most draws would be redrawn; raise "
                "max_len or move the median"
            )

    def draw(self, generator: np.random.Generator, num: int) -> NDArray[np.int64]:
        kept = np.empty(0, dtype=np.int64)
        while len(kept) < num:
            drawn = np.rint(generator.lognormal(math.log(self.median), self.sigma, num))
            within = drawn[(drawn >= 1) & (drawn <= self.max_len)]
            kept = np.concatenate([kept, within.astype(np.int64)])
        return kept[:num]

    def mean(self) -> float:
        """``sum(n * P(n)) / sum(P(n))`` over n in 1..max_len; P(n) is the lognormal's mass in n - 0.5 .. n + 0.5."""
        normal = NormalDist(math.log(self.median), self.sigma)
        below = np.array([normal.cdf(math.log(n + 0.5)) for n in range(self.max_len + 1)])
        mass = np.diff(below)
        return float(np.arange(1, self.max_len + 1) @ mass / mass.sum())

    def longest(self) -> int:
        return self.max_len


LENGTHS: dict[str, type[Lengths]] = {
    "fixed": Fixed,
    "uniform": Uniform,
    "lognormal": Lognormal,
}


@dataclass(frozen=True)
class LengthConfig:
    """A length distribution. Each kind reads its own settings; the others must be null."""

    kind: Literal["fixed", "uniform", "lognormal"]
    tokens: Tokens | None = None
    low: Tokens | None = None
    high: Tokens | None = None
    median: Annotated[float, Gt(0)] | None = None
    sigma: Annotated[float, Gt(0), Le(4)] | None = None  # at 4, one draw in six is beyond 50 times the median
    max_len: Tokens | None = None

    def __post_init__(self) -> None:
        self.build()

    def build(self) -> Lengths:
        """The distribution. Raises ValueError for a setting that is missing, contradictory or would be ignored."""
        lengths: Lengths = build_kind(self, LENGTHS)
        return lengths
