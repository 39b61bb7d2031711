"""KV block allocator: which blocks of the pool are free, and how many block tables hold each of the others.

Pure bookkeeping over block ids; the bytes are kv/cache's. Reuse is first in, first out: the block that was freed
earliest is handed out first, so freed KV stays readable as long as it can (what a prefix cache wants), and the ids
depend on the order of calls alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence


class OutOfBlocks(Exception):
    """More blocks were asked for than are free. Callers look at ``num_free`` first, and wait or preempt."""


class BlockAllocator:
    """``num_blocks`` blocks of ``block_size`` tokens each, with a reference count per block."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = deque(range(num_blocks))
        self._refcounts = [0] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that ``num_tokens`` tokens take: ``ceil(num_tokens / block_size)``."""
        return -(-num_tokens // self.block_size)

    def allocate(self, num_blocks: int) -> list[int]:
        """A block table of ``num_blocks`` ids, each with one reference. Raises OutOfBlocks and takes none."""
        if num_blocks > self.num_free:
            raise OutOfBlocks(f"{num_blocks} KV blocks asked for, {self.num_free} of {self.num_blocks} are free")
        table = [self._free.popleft() for _ in range(num_blocks)]
        for block in table:
            self._refcounts[block] = 1
        return table

    def take(self, blocks: Collection[int]) -> None:
        """Allocate these very blocks, all of them free."""
        for block in blocks:
            self._free.remove(block)
            self._refcounts[block] = 1

    def share(self, table: Sequence[int]) -> list[int]:
        """A second table over the same blocks: each lives until every table that holds it is freed."""
        for block in table:
            assert self._refcounts[block] > 0, f"block {block} is free and cannot be shared"
            self._refcounts[block] += 1
        return list(table)

    def free(self, table: Sequence[int]) -> None:
        """Drop one reference to every block of ``table``; those without any left are free again."""
        for block in table:
            assert self._refcounts[block] > 0, f"block {block} was freed twice"
            self._refcounts[block] -= 1
            if self._refcounts[block] == 0:
                self._retire(block)

    def _retire(self, block: int) -> None:
        """Nobody holds this block any more."""
        self._free.append(block)
