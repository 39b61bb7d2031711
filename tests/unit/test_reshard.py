"""Resharding: each destination byte is written once, with the right head's bytes, and load is spread over copies."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout
from xpyd.kv.reshard import RankPool, plan_pull, pulls
from xpyd.model.shard import Shard
from xpyd.model.spec import ModelSpec

HEAD_BYTES, LAYERS = 24, 3
WIDTHS = st.sampled_from([1, 2, 4, 8])


def rank_pool(shard: Shard, num_kv_heads: int, num_blocks: int, blocks_first: bool, planes: int) -> RankPool:
    heads = len(shard.kv_heads(num_kv_heads))
    return RankPool(PoolLayout(LAYERS, num_blocks, planes * heads * HEAD_BYTES, blocks_first), HEAD_BYTES, planes)


def view(memory: NDArray[np.uint16], pool: RankPool) -> NDArray[np.uint16]:
    """[layer, block, plane, head, byte] of a pool, whichever way its blocks lie."""
    layout = pool.layout
    outer = (layout.num_blocks, LAYERS) if layout.blocks_first else (LAYERS, layout.num_blocks)
    shaped = memory.reshape(*outer, pool.num_planes, pool.num_kv_heads, HEAD_BYTES)
    return shaped.swapaxes(0, 1) if layout.blocks_first else shaped


def content(layer: int, place: int, plane: int, head: int) -> int:
    """A number for each (layer, place in the block table, plane, head of the whole model); never 0."""
    return 1 + ((layer * 16 + place) * 2 + plane) * 16 + head


@settings(deadline=None, max_examples=60)
@given(
    widths=st.tuples(WIDTHS, WIDTHS),
    num_kv_heads=st.sampled_from([1, 2, 4, 8]),
    planes=st.integers(1, 2),
    num_blocks=st.integers(1, 9),
    blocks_first=st.booleans(),
    blocks_per_part=st.sampled_from([None, 1, 4]),
    max_piece_bytes=st.sampled_from([16, 100, 1 << 20]),
    seed=st.integers(0, 9),
)
def test_every_destination_byte_is_written_once_and_right(
    widths: tuple[int, int],
    num_kv_heads: int,
    planes: int,
    num_blocks: int,
    blocks_first: bool,
    blocks_per_part: int | None,
    max_piece_bytes: int,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    sizes = [12, 17]  # pools of unequal size
    tables = tuple(generator.permutation(size)[:num_blocks].tolist() for size in sizes)
    pools = [
        [rank_pool(Shard(rank, width), num_kv_heads, size, blocks_first, planes) for rank in range(width)]
        for width, size in zip(widths, sizes, strict=True)
    ]
    memories = [[np.zeros(pool.layout.nbytes, np.uint16) for pool in side] for side in pools]
    for rank, (memory, pool) in enumerate(zip(memories[0], pools[0], strict=True)):
        filled = view(memory, pool)
        for local, head in enumerate(Shard(rank, widths[0]).kv_heads(num_kv_heads)):
            for layer, place, plane in np.ndindex(LAYERS, num_blocks, planes):
                filled[layer, tables[0][place], plane, local] = content(layer, place, plane, head)
    written = [np.zeros_like(memory) for memory in memories[1]]
    moved = 0
    for pull in pulls(*widths, num_kv_heads):
        ends = pools[0][pull.source], pools[1][pull.destination]
        plan = plan_pull(pull, *ends, tables, max_piece_bytes, blocks_per_part)
        assert len(plan.part_ends) == (LAYERS if blocks_per_part is None else -(-num_blocks // blocks_per_part))
        for start, landing in zip(plan.source, plan.destination, strict=True):
            assert 0 < start.nbytes == landing.nbytes <= max_piece_bytes
            taken = memories[0][pull.source][start.offset : start.offset + start.nbytes]
            memories[1][pull.destination][landing.offset : landing.offset + landing.nbytes] = taken
            written[pull.destination][landing.offset : landing.offset + landing.nbytes] += 1
            moved += start.nbytes
    for rank, (memory, count, pool) in enumerate(zip(memories[1], written, pools[1], strict=True)):
        found = view(memory, pool)
        for local, head in enumerate(Shard(rank, widths[1]).kv_heads(num_kv_heads)):
            for layer, place, plane in np.ndindex(LAYERS, num_blocks, planes):
                assert (found[layer, tables[1][place], plane, local] == content(layer, place, plane, head)).all()
        assert count.max() == 1
        assert count.sum() == LAYERS * num_blocks * pool.layout.block_bytes, "nothing outside the table is written"
    # Every plane of every head, once for every destination rank that holds it.
    assert moved == LAYERS * num_blocks * planes * HEAD_BYTES * max(num_kv_heads, widths[1])


def test_bytes_are_those_of_the_cost_model() -> None:
    spec = ModelSpec("m", LAYERS, 64, 8, 2, 8, 64, 256)
    num_tokens, block_size = 64, 16
    pools = {width: RankPool(PoolLayout(LAYERS, 9, local(spec, width).block_bytes(16)), 16 * 8 * 4) for width in (1, 4)}
    table = list(range(num_tokens // block_size))
    for source, destination in ((1, 4), (4, 1), (4, 4)):
        plans = [
            plan_pull(pull, pools[source], pools[destination], (table, table), 1 << 20)
            for pull in pulls(source, destination, spec.num_kv_heads)
        ]
        assert sum(plan.nbytes for plan in plans) == num_tokens * spec.kv_bytes_per_token(destination)


def local(spec: ModelSpec, width: int) -> ModelSpec:
    return Shard(0, width).of(spec)


@pytest.mark.parametrize("widths", [(8, 1), (8, 2), (8, 4), (8, 8), (4, 2), (4, 8), (2, 4), (1, 8)])
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_copies_share_the_load(widths: tuple[int, int], num_kv_heads: int) -> None:
    num_blocks = 16
    load: Counter[int] = Counter()
    for pull in pulls(*widths, num_kv_heads):
        load[pull.source] += len(pull.blocks(num_blocks)) * len(pull.source_heads)
    assert sorted(load) == list(range(widths[0])), "no source rank idles"
    assert len(set(load.values())) == 1, load


def test_equal_widths_pair_up_and_a_whole_block_stays_one_piece() -> None:
    found = pulls(4, 4, 8)
    assert [(pull.source, pull.destination) for pull in found] == [(i, i) for i in range(4)]
    pool = RankPool(PoolLayout(2, 8, 2 * 2 * HEAD_BYTES), HEAD_BYTES)
    plan = plan_pull(found[0], pool, pool, ([1, 2, 3, 6], [0, 1, 2, 7]), 1 << 20)
    assert [span.nbytes for span in plan.source] == [3 * 4 * HEAD_BYTES, 4 * HEAD_BYTES] * 2
    assert plan.part_ends == [2, 4]
