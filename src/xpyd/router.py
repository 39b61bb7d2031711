"""Routers: which instance of a pool gets the next request. Pure: loads in, an index out.

The client has one router per pool, so prefill and decode instances are picked separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class Router(Protocol):
    def route(self, loads: Sequence[int]) -> int:
        """The index of the instance to use. ``loads``: outstanding tokens of each instance of the pool."""


class RoundRobin:
    """Each in turn, whatever their loads."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, loads: Sequence[int]) -> int:
        index = self._next % len(loads)
        self._next = index + 1
        return index


class LeastOutstanding:
    """The fewest outstanding tokens; equals take turns, so that an idle pool is used evenly."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, loads: Sequence[int]) -> int:
        index = min(range(len(loads)), key=lambda i: (loads[i], (i - self._next) % len(loads)))
        self._next = index + 1
        return index


ROUTERS: dict[str, type[Router]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
}


@dataclass(frozen=True)
class RouterConfig:
    policy: Literal["round_robin", "least_outstanding"] = "least_outstanding"

    def build(self) -> Router:
        """A fresh router; make one for each pool."""
        return ROUTERS[self.policy]()
