"""Resharding: each destination byte is written once, with the right head's bytes, and load is spread over copies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout
from xpyd.kv.reshard import Holding, RankPool, holdings, plan_pull, pulls
from xpyd.model.spec import ModelSpec
from xpyd.placement import Division

HEAD_BYTES, LAYERS = 24, 5
# 2 and 4 stages hold 5 layers unequally. Only sources are context-parallel, and only destinations pipelines, but the
# rules know nothing of it.
DIVISIONS = st.sampled_from(
    [Division("tp", w) for w in (1, 2, 4, 8)] + [Division(k, w) for k in ("pp", "cp", "ep") for w in (2, 4)]
)


def rank_pool(held: Holding, num_blocks: int, blocks_first: bool, planes: int) -> RankPool:
    layout = PoolLayout(len(held.layers), num_blocks, planes * len(held.heads) * HEAD_BYTES, blocks_first)
    return RankPool(layout, HEAD_BYTES, planes, held)


def view(memory: NDArray[np.uint16], pool: RankPool) -> NDArray[np.uint16]:
    """[layer, block, plane, head, byte] of a pool, whichever way its blocks lie."""
    layout = pool.layout
    layers, heads = len(pool.holding.layers), len(pool.holding.heads)
    outer = (layout.num_blocks, layers) if layout.blocks_first else (layers, layout.num_blocks)
    shaped = memory.reshape(*outer, pool.num_planes, heads, HEAD_BYTES)
    return shaped.swapaxes(0, 1) if layout.blocks_first else shaped


def content(layer: int, place: int, plane: int, head: int) -> int:
    """A number for each (layer, place in the block table, plane, head of the whole model); never 0."""
    return 1 + ((layer * 16 + place) * 2 + plane) * 16 + head


@settings(deadline=None, max_examples=60)
@given(
    divisions=st.tuples(DIVISIONS, DIVISIONS),
    num_kv_heads=st.sampled_from([1, 2, 4, 8]),
    planes=st.integers(1, 2),
    num_blocks=st.integers(1, 9),
    blocks_first=st.booleans(),
    blocks_per_part=st.sampled_from([None, 1, 4]),
    max_piece_bytes=st.sampled_from([16, 100, 1 << 20]),
    seed=st.integers(0, 9),
)
def test_every_destination_byte_is_written_once_and_right(
    divisions: tuple[Division, Division],
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
        [rank_pool(held, size, blocks_first, planes) for held in holdings(division, LAYERS, num_kv_heads)]
        for division, size in zip(divisions, sizes, strict=True)
    ]
    memories = [[np.zeros(pool.layout.nbytes, np.uint16) for pool in side] for side in pools]
    for memory, pool in zip(memories[0], pools[0], strict=True):
        filled = view(memory, pool)
        for place, plane, (local, layer), (slot, head) in held_by(pool, num_blocks):
            filled[local, tables[0][place], plane, slot] = content(layer, place, plane, head)
    written = [np.zeros_like(memory) for memory in memories[1]]
    moved = 0
    for pull in pulls(*divisions, LAYERS, num_kv_heads):
        ends = pools[0][pull.source], pools[1][pull.destination]
        plan = plan_pull(pull, *ends, LAYERS, tables, max_piece_bytes, blocks_per_part)
        assert len(plan.part_ends) == (LAYERS if blocks_per_part is None else -(-num_blocks // blocks_per_part))
        for start, landing in zip(plan.source, plan.destination, strict=True):
            assert 0 < start.nbytes == landing.nbytes <= max_piece_bytes
            taken = memories[0][pull.source][start.offset : start.offset + start.nbytes]
            memories[1][pull.destination][landing.offset : landing.offset + landing.nbytes] = taken
            written[pull.destination][landing.offset : landing.offset + landing.nbytes] += 1
            moved += start.nbytes
    for memory, count, pool in zip(memories[1], written, pools[1], strict=True):
        found = view(memory, pool)
        for place, plane, (local, layer), (slot, head) in held_by(pool, num_blocks):
            assert (found[local, tables[1][place], plane, slot] == content(layer, place, plane, head)).all()
        assert count.max() == 1
        held_bytes = len(pool.holding.layers) * num_blocks * pool.layout.block_bytes
        assert count.sum() == held_bytes, "nothing outside the table is written"
    # Every plane of every head of every layer, once for every destination rank that holds it.
    by_heads = max(num_kv_heads, divisions[1].width) / num_kv_heads
    copies = {"tp": by_heads, "ep": by_heads, "pp": 1, "cp": divisions[1].width}
    assert moved == LAYERS * num_blocks * planes * HEAD_BYTES * num_kv_heads * copies[divisions[1].kind]


def held_by(pool: RankPool, num_blocks: int) -> Iterator[tuple[int, int, tuple[int, int], tuple[int, int]]]:
    """(place, plane, (here, in the model) of a layer, likewise of a head) of all that a rank holds of a request."""
    layers, heads = list(enumerate(pool.holding.layers)), list(enumerate(pool.holding.heads))
    yield from product(range(num_blocks), range(pool.num_planes), layers, heads)


def test_bytes_are_those_of_the_cost_model() -> None:
    spec = ModelSpec("m", LAYERS, 64, 8, 2, 8, 64, 256)
    num_tokens, block_size = 64, 16
    table = list(range(num_tokens // block_size))
    one, four, stages = Division(), Division("tp", 4), Division("pp", 4)
    pools = {}
    for division in (one, four, stages):
        found = holdings(division, LAYERS, spec.num_kv_heads)
        cell = {held: len(held.heads) * 2 * block_size * spec.head_dim * 4 for held in found}
        layouts = [PoolLayout(len(held.layers), 9, cell[held]) for held in found]
        pools[division] = [RankPool(layout, 16 * 8 * 4, 2, held) for layout, held in zip(layouts, found, strict=True)]
    for source, destination in ((one, four), (four, one), (four, four), (one, stages), (four, stages)):
        plans = [
            plan_pull(
                pull,
                pools[source][pull.source],
                pools[destination][pull.destination],
                LAYERS,
                (table, table),
                1 << 20,
            )
            for pull in pulls(source, destination, LAYERS, spec.num_kv_heads)
        ]
        tp = destination.width if destination.kind == "tp" else 1
        assert sum(plan.nbytes for plan in plans) == num_tokens * spec.kv_bytes_per_token(tp)


@pytest.mark.parametrize("widths", [(8, 1), (8, 2), (8, 4), (8, 8), (4, 2), (4, 8), (2, 4), (1, 8)])
@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_copies_share_the_load(widths: tuple[int, int], num_kv_heads: int) -> None:
    num_blocks = 16
    load: Counter[int] = Counter()
    ends = Division("tp", widths[0]), Division("tp", widths[1])
    for pull in pulls(*ends, LAYERS, num_kv_heads):
        load[pull.source] += len(pull.blocks(num_blocks)) * len(pull.taken.heads)
    assert sorted(load) == list(range(widths[0])), "no source rank idles"
    assert len(set(load.values())) == 1, load


def test_equal_widths_pair_up_and_a_whole_block_stays_one_piece() -> None:
    four = Division("tp", 4)
    found = pulls(four, four, 2, 8)
    assert [(pull.source, pull.destination) for pull in found] == [(i, i) for i in range(4)]
    pool = RankPool(PoolLayout(2, 8, 2 * 2 * HEAD_BYTES), HEAD_BYTES, 2, Holding(range(2), range(2)))
    plan = plan_pull(found[0], pool, pool, 2, ([1, 2, 3, 6], [0, 1, 2, 7]), 1 << 20)
    assert [span.nbytes for span in plan.source] == [3 * 4 * HEAD_BYTES, 4 * HEAD_BYTES] * 2
    assert plan.part_ends == [2, 4]


def test_each_stage_takes_its_layers_and_an_equal_share_from_every_copy() -> None:
    """A prompt whose four context-parallel ranks hold it whole, to two stages of 2 and 3 layers."""
    found = pulls(Division("cp", 4), Division("pp", 2), LAYERS, 2)
    assert [(pull.source, pull.destination) for pull in found] == [(s, d) for d in range(2) for s in range(4)]
    assert [pull.taken.layers for pull in found] == [range(2)] * 4 + [range(2, 5)] * 4
    assert [list(pull.blocks(6)) for pull in found[:4]] == [[0], [1, 2], [3], [4, 5]]
