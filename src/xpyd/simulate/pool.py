"""A KV pool that counts blocks and knows no ids: what a scheduler needs of its allocator when no bytes are kept.

It stands in for ``kv.blocks.BlockAllocator`` inside the real schedulers, at the cost of a subtraction where that one
hands out every block by its id.
"""

from __future__ import annotations

from typing import Any

from xpyd.kv.blocks import BlockAllocator, OutOfBlocks

MOST_SHARED = 1024  # zeros in a list: all of these lists together are 4 MiB
_SHARED = [[0] * num for num in range(MOST_SHARED + 1)]


def tally(num: int) -> list[int]:
    """``num`` zeros where a scheduler asks for a block table: only its length matters, so equal ones are one list.

    Not to be changed; ``[*tally(num)]`` is a table that may grow.
    """
    return _SHARED[num] if num <= MOST_SHARED else [0] * num


class CountedBlocks(BlockAllocator):
    """The allocator's interface over one number. Raises OutOfBlocks as the original does."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.count = num_blocks

    @property
    def num_free(self) -> int:
        return self.count

    def allocate(self, num_blocks: int) -> list[int]:
        if num_blocks > self.count:
            raise OutOfBlocks(f"{num_blocks} KV blocks asked for, {self.count} of {self.num_blocks} are free")
        self.count -= num_blocks
        return tally(num_blocks)

    def free(self, table: Any) -> None:
        self.count += len(table)
        assert self.count <= self.num_blocks, "blocks were freed twice"
