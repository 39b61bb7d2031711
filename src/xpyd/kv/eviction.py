"""Which cached block goes first when its memory is wanted: policies as pure functions of how a block was used.

Time is a count of the sequences that were placed so far, never a clock, so that two runs evict alike. A policy gives
a score that does not change while a block lies idle; the smallest goes first. Children go before parents whatever the
score: a block without the ones before it could not be found again (``kv.prefix``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Literal

EvictionPolicy = Literal["lru", "priority", "expected_completion"]
Score = tuple[float, ...]


@dataclass(slots=True)
class Use:
    """How a cached block was used: ticks of its first and latest claim, and when it was last given back."""

    first: int
    claimed: int
    last: int
    num_reuses: int = 0
    priority: int = 0  # the highest of the requests that used it

    def claim(self, tick: int, priority: int) -> None:
        """Another sequence takes the block into its table."""
        self.num_reuses += 1
        self.claimed = self.last = tick
        self.priority = max(self.priority, priority)

    @property
    def mean_gap(self) -> float:
        """Ticks between two claims; 0 before the second."""
        return (self.claimed - self.first) / self.num_reuses if self.num_reuses else 0.0


def lru(use: Use) -> Score:
    """Least recently used first."""
    return (use.last,)


def priority(use: Use) -> Score:
    """Lowest priority first, least recently used among equals."""
    return (use.priority, use.last)


def expected_completion(use: Use) -> Score:
    """First the block whose stream of requests is expected to have completed earliest; an unproven one at once.

    The requests that share a block are taken for customers who buy at rate 1 / g and drop out with probability
    1 - p after each purchase. Idle for a, a stream is still alive with probability 1 / (1 + (1 - p) / p * exp(a / g))
    (Fader, Hardie and Lee, "Counting Your Customers" the Easy Way, Marketing Science 24(2), 2005, equation 7 with
    known parameters). That is one half, and completion as likely as not, at a = g * ln(p / (1 - p)). With g the mean
    gap and p = (r + 1) / (r + 2) after r reuses (Laplace's rule of succession) it is a = g * ln(r + 1).
    """
    return (use.last + use.mean_gap * log(use.num_reuses + 1), use.last)


POLICIES: dict[str, Callable[[Use], Score]] = {
    "lru": lru,
    "priority": priority,
    "expected_completion": expected_completion,
}
