"""A KV pool that counts blocks and knows no ids: what a scheduler needs of its allocator when no bytes are kept.

It stands in for ``kv.blocks.BlockAllocator`` inside the real schedulers, at the cost of a subtraction where that one
hands out every block by its id.
"""

from __future__ import annotations

from typing import Any

from xpyd.kv.blocks import BlockAllocator, OutOfBlocks


def tally(num: int = 0) -> list[int]:
    """``num`` zeros where the schedulers' types ask for a list: of block tables and outputs only the length matters.

    A byte each, and a length that costs no turn of the interpreter.
    """
    return bytearray(num)  # type: ignore[return-value]


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
