"""The remote pool: memory that every worker lends to all, and which of them keeps what. Pure.

A chain of blocks lives on one rank, its *home*, found from the key of its first block: so a whole prefix is asked for,
and fetched, in one message, and no rank has to know what the others hold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xpyd.kv.entries import Entry, Tier
from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import Cells, Plan, merge


def home_of(root: bytes, ranks: Sequence[int]) -> int:
    """The rank that keeps the chain which begins with the block of this key."""
    return ranks[int.from_bytes(root[:8], "little") % len(ranks)]


class Outbox:
    """Slots in which evicted blocks wait until they have left; a block that finds none is forgotten."""

    name: Tier = "outbox"

    def __init__(self, num_slots: int) -> None:
        self._free = deque(range(num_slots))
        self._waiting: list[tuple[int, Entry]] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    def adopt(self, entry: Entry) -> int | None:
        """A slot for an evicted block."""
        if not self._free:
            return None
        slot = self._free.popleft()
        self._waiting.append((slot, replace(entry, use=replace(entry.use))))
        return slot

    def take(self) -> list[tuple[int, Entry]]:
        """What was adopted since the last call: (slot, block)."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def give_back(self, slots: Sequence[int]) -> None:
        """These have left."""
        assert not set(slots) & set(self._free), "a slot was given back twice"
        self._free.extend(slots)


def plan_put(block_bytes: int, outbox: tuple[int, Sequence[int]], shelf: tuple[int, Sequence[int]], limit: int) -> Plan:
    """From outbox slots to shelf slots, each given as (first byte of all, slots); ``block_bytes`` of all layers."""
    cells = (begin + np.asarray(slots, np.int64) * block_bytes for begin, slots in (outbox, shelf))
    return merge([Cells(*cells)], block_bytes, limit)


def plan_fetch(layout: PoolLayout, shelf: tuple[int, Sequence[int]], table: Sequence[int], limit: int) -> Plan:
    """From shelf slots straight into blocks of a pool, layer by layer of each block."""
    layers = np.arange(layout.num_layers, dtype=np.int64)
    begin, slots = shelf
    source = begin + (np.asarray(slots, np.int64)[:, None] * layout.num_layers + layers) * layout.block_bytes
    landing = np.asarray(table, np.int64)[:, None] * layout.block_stride + layers * layout.layer_stride
    return merge([Cells(source.ravel(), landing.ravel())], layout.block_bytes, limit)
