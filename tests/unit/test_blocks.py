"""The block allocator: conservation under any order of calls, reference counts, and refusals."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xpyd.kv.blocks import BlockAllocator, OutOfBlocks

NUM_BLOCKS = 12


@given(st.lists(st.tuples(st.sampled_from(["allocate", "share", "free"]), st.integers(0, NUM_BLOCKS)), max_size=60))
def test_no_block_is_lost_or_given_twice(calls: list[tuple[str, int]]) -> None:
    blocks = BlockAllocator(NUM_BLOCKS, block_size=4)
    tables: list[list[int]] = []
    for call, number in calls:
        if call == "allocate" and number <= blocks.num_free:
            in_use = {block for table in tables for block in table}
            table = blocks.allocate(number)
            assert len(set(table)) == number
            assert in_use.isdisjoint(table)
            tables.append(table)
        elif call == "share" and tables:
            tables.append(blocks.share(tables[number % len(tables)]))
        elif call == "free" and tables:
            blocks.free(tables.pop(number % len(tables)))
        references = Counter(block for table in tables for block in table)
        assert blocks.num_free == NUM_BLOCKS - len(references)
    for table in tables:
        blocks.free(table)
    assert sorted(blocks.allocate(NUM_BLOCKS)) == list(range(NUM_BLOCKS))


def test_a_refused_allocation_takes_nothing() -> None:
    blocks = BlockAllocator(3, block_size=4)
    with pytest.raises(OutOfBlocks, match="4 KV blocks asked for, 3 of 3 are free"):
        blocks.allocate(4)
    assert blocks.num_free == 3


def test_freed_blocks_are_reused_oldest_first() -> None:
    blocks = BlockAllocator(3, block_size=4)
    first, second = blocks.allocate(1), blocks.allocate(1)
    blocks.free(second)
    blocks.free(first)
    assert blocks.allocate(3) == [2, *second, *first]


def test_freeing_twice_and_sharing_a_free_block_are_caught() -> None:
    blocks = BlockAllocator(2, block_size=4)
    table = blocks.allocate(1)
    blocks.free(table)
    with pytest.raises(AssertionError, match="freed twice"):
        blocks.free(table)
    with pytest.raises(AssertionError, match="cannot be shared"):
        blocks.share(table)


@pytest.mark.parametrize(("num_tokens", "expected"), [(0, 0), (1, 1), (16, 1), (17, 2), (2048, 128)])
def test_blocks_for(num_tokens: int, expected: int) -> None:
    assert BlockAllocator(1, block_size=16).blocks_for(num_tokens) == expected
