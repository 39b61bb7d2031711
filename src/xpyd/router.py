"""Routers: which instance of a pool gets the next request. Pure: loads in, an index out.

The client has one router per pool, so prefill and decode instances are picked separately.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class Router(Protocol):
    def route(self, loads: Sequence[int], missing: Sequence[int] = ()) -> int:
        """The index of the instance to use. ``loads``: outstanding tokens of each instance of the pool.

        ``missing``: tokens of this request whose KV each would have to compute, or to get over a link; only a router
        with ``sees_kv`` is told.
        """


class RoundRobin:
    """Each in turn, whatever their loads."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, loads: Sequence[int], missing: Sequence[int] = ()) -> int:
        index = self._next % len(loads)
        self._next = index + 1
        return index


class LeastOutstanding:
    """The fewest outstanding tokens; equals take turns, so that an idle pool is used evenly."""

    def __init__(self) -> None:
        self._next = 0

    def route(self, loads: Sequence[int], missing: Sequence[int] = ()) -> int:
        index = min(range(len(loads)), key=lambda i: (loads[i], (i - self._next) % len(loads)))
        self._next = index + 1
        return index


class KvAware:
    """The fewest outstanding tokens, those that this request would add counted too; equals take turns.

    A token whose KV is there already adds nothing, so a request goes where its beginning is unless the queue there is
    longer than what that saves. NVIDIA Dynamo's router weighs the same two, new prefill blocks and load.
    """

    def __init__(self) -> None:
        self._least = LeastOutstanding()

    def route(self, loads: Sequence[int], missing: Sequence[int] = ()) -> int:
        return self._least.route([load + more for load, more in zip(loads, missing or [0] * len(loads), strict=True)])


ROUTERS: dict[str, type[Router]] = {
    "round_robin": RoundRobin,
    "least_outstanding": LeastOutstanding,
    "kv_aware": KvAware,
}


@dataclass(frozen=True)
class RouterConfig:
    policy: Literal["round_robin", "least_outstanding", "kv_aware"] = "least_outstanding"

    @property
    def sees_kv(self) -> bool:
        """Whether it asks what KV is where."""
        return self.policy == "kv_aware"

    def build(self) -> Router:
        """A fresh router; make one for each pool."""
        return ROUTERS[self.policy]()


class SentBlocks:
    """The keys of the KV blocks that each rank was last sent: what its prefix cache probably holds, without asking.

    Bounded to ``num_blocks`` of a rank, the least recently sent forgotten first, as a cache of that size would.
    """

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._keys: defaultdict[int, OrderedDict[bytes, None]] = defaultdict(OrderedDict)

    def num_hits(self, rank: int, keys: Sequence[bytes]) -> int:
        """How many leading blocks of a prompt are there."""
        known = self._keys[rank]
        return next((i for i, key in enumerate(keys) if key not in known), len(keys))

    def sent(self, rank: int, keys: Sequence[bytes]) -> None:
        known = self._keys[rank]
        for key in reversed(keys):  # leaves go before their parents, so that what is known can be reached
            known[key] = None
            known.move_to_end(key)
        while len(known) > self._num_blocks:
            known.popitem(last=False)
