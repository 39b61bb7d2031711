"""The transfer plan: every byte of every block exactly once, neighbours merged, long runs cut, parts in order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpyd.kv.layout import PoolLayout, Span
from xpyd.kv.plan import Plan, plan_request

LAYOUT = PoolLayout(num_layers=2, num_blocks=8, block_bytes=10)
BLOCKS_FIRST = PoolLayout(num_layers=2, num_blocks=8, block_bytes=10, blocks_first=True)


def pieces(plan: Plan, part: int) -> list[tuple[Span, Span]]:
    begin = plan.part_ends[part - 1] if part else 0
    return list(zip(plan.source, plan.destination, strict=True))[begin : plan.part_ends[part]]


def test_neighbours_on_both_sides_are_one_piece() -> None:
    plan = plan_request(LAYOUT, [2, 3, 4], [5, 6, 7], max_piece_bytes=100)
    assert pieces(plan, 1) == [(Span(80 + 20, 30), Span(80 + 50, 30))]


def test_neighbours_on_one_side_only_are_not_merged() -> None:
    plan = plan_request(LAYOUT, [2, 3, 4], [5, 7, 6], max_piece_bytes=100)
    assert [source.nbytes for source, _ in pieces(plan, 0)] == [10, 10, 10]


def test_long_runs_are_cut() -> None:
    plan = plan_request(LAYOUT, [0, 1, 2], [0, 1, 2], max_piece_bytes=12)
    assert [source for source, _ in pieces(plan, 0)] == [Span(0, 12), Span(12, 12), Span(24, 6)]


def test_a_part_is_a_layer() -> None:
    plan = plan_request(LAYOUT, [0, 2], [0, 1], max_piece_bytes=100)
    assert plan.part_ends == [2, 4]
    assert len(plan.source) == len(plan.destination) == 4
    assert plan.nbytes == 40


def test_a_part_is_a_run_of_blocks_in_all_layers() -> None:
    plan = plan_request(LAYOUT, [0, 1, 2], [4, 5, 6], max_piece_bytes=100, blocks_per_part=2)
    assert pieces(plan, 0) == [(Span(0, 20), Span(40, 20)), (Span(80, 20), Span(120, 20))]
    assert pieces(plan, 1) == [(Span(20, 10), Span(60, 10)), (Span(100, 10), Span(140, 10))]


def test_blocks_first_makes_all_layers_of_neighbours_one_piece() -> None:
    whole = plan_request(BLOCKS_FIRST, [1, 2, 3], [5, 6, 7], max_piece_bytes=100, blocks_per_part=3)
    assert pieces(whole, 0) == [(Span(20, 60), Span(100, 60))]
    layers = plan_request(BLOCKS_FIRST, [1, 2, 3], [5, 6, 7], max_piece_bytes=100)
    assert [span.nbytes for span in layers.source] == [10] * 6, "a layer of it is scattered"


tables = st.integers(1, 8).flatmap(
    lambda n: st.tuples(*[st.permutations(range(8)).map(lambda blocks: list(blocks)[:n])] * 2)
)


@pytest.mark.parametrize("layout", [LAYOUT, BLOCKS_FIRST], ids=["layers_first", "blocks_first"])
@settings(deadline=None)
@given(both=tables, limit=st.integers(1, 200), blocks_per_part=st.none() | st.integers(1, 8))
def test_every_block_arrives_whole_and_nothing_else_changes(
    layout: PoolLayout, both: tuple[list[int], list[int]], limit: int, blocks_per_part: int | None
) -> None:
    source, destination = both
    plan = plan_request(layout, source, destination, limit, blocks_per_part)
    sent = np.arange(1, layout.nbytes + 1)
    landed = np.zeros_like(sent)
    for a, b in zip(plan.source, plan.destination, strict=True):
        assert a.nbytes == b.nbytes <= limit
        assert not landed[b.offset : b.offset + b.nbytes].any(), "no byte is written twice"
        landed[b.offset : b.offset + b.nbytes] = sent[a.offset : a.offset + a.nbytes]
    expected = np.zeros_like(sent)
    for layer in range(layout.num_layers):
        for a, b in zip(source, destination, strict=True):
            begin, end = layout.offset(layer, b), layout.offset(layer, a)
            expected[begin : begin + 10] = sent[end : end + 10]
    assert (landed == expected).all()
    assert plan.part_ends[-1] == len(plan.source)


@settings(deadline=None)
@given(both=tables, blocks_per_part=st.integers(1, 8))
def test_a_part_holds_its_own_blocks_only(both: tuple[list[int], list[int]], blocks_per_part: int) -> None:
    source, destination = both
    plan = plan_request(LAYOUT, source, destination, 1000, blocks_per_part)
    for part in range(len(plan.part_ends)):
        mine = set(source[part * blocks_per_part : (part + 1) * blocks_per_part])
        touched = {
            byte % LAYOUT.layer_bytes // LAYOUT.block_bytes
            for span, _ in pieces(plan, part)
            for byte in range(span.offset, span.offset + span.nbytes)
        }
        assert touched == mine
