"""The memory of the cache's tiers, by block: the pool, the host arena, and slots behind the pool; copies among them.

A block is all its layers. On a CPU the host arena lies in the same memory as the pool, and a copy is a memcpy; with the
pool on a GPU the arena is pinned host memory. The slots behind the pool are registered with the transport.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch

from xpyd.kv.cache import KVCache
from xpyd.kv.entries import BlockMove
from xpyd.kv.layout import PoolLayout


def block_nbytes(layout: PoolLayout) -> int:
    """Bytes of one block, all layers."""
    return layout.num_layers * layout.block_bytes


class Arenas:
    """``num_outbox`` slots begin at byte ``behind`` of the registered memory, and ``num_shelf`` follow them."""

    def __init__(
        self, cache: KVCache, num_host_blocks: int = 0, behind: int = 0, num_outbox: int = 0, num_shelf: int = 0
    ) -> None:
        layout = cache.layout
        self._cache = cache
        self._slot_shape = (layout.num_layers, layout.block_bytes)
        stored = cache.registered[: layout.nbytes]
        if layout.blocks_first:
            pool = stored.view(layout.num_blocks, *self._slot_shape)
        else:
            pool = stored.view(layout.num_layers, layout.num_blocks, layout.block_bytes).transpose(0, 1)
        self._tiers = {  # each [num_blocks, num_layers, block_bytes]
            "pool": pool,
            "host": self._host(num_host_blocks),
            "outbox": self._slots(behind, num_outbox),
            "shelf": self._slots(behind + num_outbox * block_nbytes(layout), num_shelf),
        }
        self.moved_bytes: Counter[str] = Counter()  # by "from to"

    def _slots(self, begin: int, num_slots: int) -> torch.Tensor:
        """Slots of the registered memory behind the pool: a view [num_slots, num_layers, block_bytes]."""
        nbytes = num_slots * block_nbytes(self._cache.layout)
        return self._cache.registered[begin : begin + nbytes].view(num_slots, *self._slot_shape)

    def move(self, moves: Iterable[BlockMove]) -> None:
        """Make these copies in this order."""
        for source_tier, source, destination_tier, destination in moves:
            taken = self._tiers[source_tier][source]
            self._tiers[destination_tier][destination].copy_(taken)
            self.moved_bytes[f"{source_tier} {destination_tier}"] += taken.numel()

    def _host(self, num_blocks: int) -> torch.Tensor:
        pinned = self._cache.registered.is_cuda
        arena = torch.empty((num_blocks, *self._slot_shape), dtype=torch.uint8, pin_memory=pinned)
        return arena.fill_(0)  # touched now: page faults do not fall into a step
