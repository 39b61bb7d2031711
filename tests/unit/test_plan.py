"""The transfer plan: every byte of every block exactly once, neighbours merged, long runs cut, layers in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xpyd.kv.layout import PoolLayout, Span
from xpyd.kv.plan import plan_layer, plan_request

LAYOUT = PoolLayout(num_layers=2, num_blocks=8, block_bytes=10)


def test_neighbours_on_both_sides_are_one_piece() -> None:
    pieces = plan_layer(LAYOUT, 1, [2, 3, 4], [5, 6, 7], max_piece_bytes=100)
    assert pieces == [(Span(80 + 20, 30), Span(80 + 50, 30))]


def test_neighbours_on_one_side_only_are_not_merged() -> None:
    pieces = plan_layer(LAYOUT, 0, [2, 3, 4], [5, 7, 6], max_piece_bytes=100)
    assert [source.nbytes for source, _ in pieces] == [10, 10, 10]


def test_long_runs_are_cut() -> None:
    pieces = plan_layer(LAYOUT, 0, [0, 1, 2], [0, 1, 2], max_piece_bytes=12)
    assert [source for source, _ in pieces] == [Span(0, 12), Span(12, 12), Span(24, 6)]


def test_layer_ends_count_pieces() -> None:
    plan = plan_request(LAYOUT, [0, 2], [0, 1], max_piece_bytes=100)
    assert plan.layer_ends == [2, 4]
    assert len(plan.source) == len(plan.destination) == 4


tables = st.integers(1, 8).flatmap(
    lambda n: st.tuples(*[st.permutations(range(8)).map(lambda blocks: list(blocks)[:n])] * 2)
)


@given(tables, st.integers(1, 200))
def test_every_block_arrives_whole_and_nothing_else_changes(both: tuple[list[int], list[int]], limit: int) -> None:
    source, destination = both
    plan = plan_request(LAYOUT, source, destination, limit)
    sent = np.arange(1, LAYOUT.nbytes + 1)
    landed = np.zeros_like(sent)
    for a, b in zip(plan.source, plan.destination, strict=True):
        assert a.nbytes == b.nbytes <= limit
        assert not landed[b.offset : b.offset + b.nbytes].any(), "no byte is written twice"
        landed[b.offset : b.offset + b.nbytes] = sent[a.offset : a.offset + a.nbytes]
    expected = np.zeros_like(sent)
    for layer in range(LAYOUT.num_layers):
        for a, b in zip(source, destination, strict=True):
            begin, end = LAYOUT.offset(layer, b), LAYOUT.offset(layer, a)
            expected[begin : begin + 10] = sent[end : end + 10]
    assert (landed == expected).all()
