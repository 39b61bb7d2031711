"""Staging: what is gathered, sent and scattered arrives as if it had been sent as it lies; slots always come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpyd.economics.cost import LinkModel, LinkPoint
from xpyd.kv.coalesce import PieceCosts, choose, fit_pieces
from xpyd.kv.layout import PoolLayout
from xpyd.kv.staging import Slots, gather, plan_staged, scatter
from xpyd.transport.loopback import Hub, LoopbackTransport
from xpyd.worker.packing import CopyPacker
from xpyd.worker.staged import StagedReceive, StagedSend

NUM_BLOCKS, NUM_LAYERS, BLOCK_BYTES = 9, 3, 8
SLOT_BYTES = 3 * BLOCK_BYTES + 5  # does not divide into blocks
STAGING_BYTES = 4 * SLOT_BYTES

tables = st.integers(1, NUM_BLOCKS).flatmap(
    lambda n: st.tuples(*[st.permutations(range(NUM_BLOCKS)).map(lambda blocks: list(blocks)[:n])] * 2)
)


def layout(blocks_first: bool = False) -> PoolLayout:
    return PoolLayout(NUM_LAYERS, NUM_BLOCKS, BLOCK_BYTES, blocks_first)


def moved(pool: PoolLayout, sent: np.ndarray, source: list[int], destination: list[int]) -> np.ndarray:
    """What the destination's pool must hold afterwards, block by block."""
    expected = np.zeros(pool.nbytes, np.uint8)
    for layer in range(pool.num_layers):
        for a, b in zip(source, destination, strict=True):
            begin, landing = pool.offset(layer, a), pool.offset(layer, b)
            expected[landing : landing + BLOCK_BYTES] = sent[begin : begin + BLOCK_BYTES]
    return expected


@settings(deadline=None)
@given(
    both=tables,
    blocks_first=st.booleans(),
    blocks_per_part=st.none() | st.integers(1, 9),
    num_slots=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_a_staged_transfer_is_a_transfer(
    both: tuple[list[int], list[int]], blocks_first: bool, blocks_per_part: int | None, num_slots: tuple[int, int]
) -> None:
    source, destination = both
    pool, hub = layout(blocks_first), Hub()
    buffers = np.random.default_rng(0).integers(1, 256, (2, pool.nbytes + STAGING_BYTES), dtype=np.uint8)
    buffers[1] = 0
    ends = [LoopbackTransport(rank, hub) for rank in range(2)]
    lent = []
    for end, buffer, count in zip(ends, buffers, num_slots, strict=True):
        end.register(buffer)
        slots = Slots(pool.nbytes, SLOT_BYTES, STAGING_BYTES)
        taken = slots.take(count)
        assert taken is not None
        lent.append((slots, taken))
    plan = plan_staged(pool, source, destination, SLOT_BYTES, blocks_per_part)
    receive = StagedReceive(ends[1], 0, CopyPacker(buffers[1], BLOCK_BYTES), plan, 7, lent[1][1])
    send = StagedSend(ends[0], 1, CopyPacker(buffers[0], BLOCK_BYTES), plan, 7, lent[0][1])
    sent = buffers[0].copy()
    for part, end in enumerate(plan.part_ends):
        assert not send.done
        send.release(end)
        for _ in range(2 * len(plan.pieces) + 2):
            send.advance()
            hub.match()
            receive.advance()
        assert receive.done == (part == len(plan.part_ends) - 1), "no piece leaves before its part is final"
    send.advance()
    assert (buffers[1][: pool.nbytes] == moved(pool, sent, source, destination)).all()
    assert (buffers[0][: pool.nbytes] == sent[: pool.nbytes]).all(), "the source's blocks stay as they are"
    assert ends[1].received_bytes == plan.nbytes == len(source) * NUM_LAYERS * BLOCK_BYTES
    for flow, (slots, _) in zip((send, receive), lent, strict=True):
        flow.give_back(slots)
        assert slots.num_free == 4


def test_pieces_fill_a_slot_with_whole_blocks_of_one_part() -> None:
    plan = plan_staged(layout(), [8, 0, 4, 2], [1, 3, 5, 7], SLOT_BYTES)
    assert [len(cells.source) for cells in plan.pieces] == [3, 1] * NUM_LAYERS
    assert plan.part_ends == [2, 4, 6]
    assert plan.num_cells == 12


@settings(deadline=None)
@given(both=tables)
def test_scatter_undoes_gather(both: tuple[list[int], list[int]]) -> None:
    pool, (table, _) = layout(), both
    buffer = np.random.default_rng(1).integers(0, 256, pool.nbytes + 9 * BLOCK_BYTES, dtype=np.uint8)
    before = buffer.copy()
    cells = np.array([pool.offset(1, block) for block in table])
    nbytes = gather(buffer, cells, BLOCK_BYTES, pool.nbytes)
    assert nbytes == len(table) * BLOCK_BYTES
    for block in table:
        buffer[pool.offset(1, block) : pool.offset(1, block) + BLOCK_BYTES] = 0
    scatter(buffer, cells, BLOCK_BYTES, pool.nbytes)
    assert (buffer[: pool.nbytes] == before[: pool.nbytes]).all()


def test_slots_are_lent_whole_or_not_at_all() -> None:
    slots = Slots(100, 10, 39)
    assert slots.num_free == 3
    taken = slots.take(2)
    assert taken == [100, 110]
    assert slots.take(2) is None
    assert slots.num_free == 1
    slots.give_back(taken)
    with pytest.raises(AssertionError, match="twice"):
        slots.give_back(taken)


LINK = LinkModel(alpha_s=1e-3, gamma_s=1e-4, bytes_per_s=1e9)


def test_many_small_pieces_are_gathered_and_few_large_ones_are_not() -> None:
    """By hand: 1000 pieces for 1 MB cost 1 + 100 + 1 ms; 10 pieces cost 1 + 1 + 1 ms and 1000 cells x 2 x 2 us."""
    costs = PieceCosts(LINK, gather_cell_s=2e-6, scatter_cell_s=2e-6)
    many = choose(costs, 1_000_000, num_direct=1000, num_staged=10, num_cells=1000)
    assert many.staged
    assert many.direct_s == pytest.approx(0.102)
    assert many.staged_s == pytest.approx(0.003 + 0.004)
    assert many.reason == "990 pieces fewer save 99 ms, copies cost 4 ms"
    few = choose(costs, 1_000_000, num_direct=12, num_staged=10, num_cells=1000)
    assert not few.staged


def test_pieces_are_priced_by_pairs_whatever_drifts() -> None:
    """Every pair is slowed by another load of the machine; the price of a piece is what the second costs more."""
    pairs = []
    for drift_s, size in enumerate((10_000, 1_000_000, 10_000_000)):
        few, many = (LINK.transfer_s(size, pieces) for pieces in (6, 600))
        pairs.append((LinkPoint(size, 6, few + drift_s / 100), LinkPoint(size, 600, many + drift_s / 100)))
    assert fit_pieces(pairs, 1e9).gamma_s == pytest.approx(LINK.gamma_s)
    still = [(LinkPoint(size, 6, LINK.transfer_s(size, 6)), LinkPoint(size, 6, 9.0)) for size in (10_000, 1_000_000)]
    found = fit_pieces([*still, (still[0][0], LinkPoint(10_000, 600, LINK.transfer_s(10_000, 600)))], 1e9)
    assert found.gamma_s == pytest.approx(LINK.gamma_s)
    assert found.alpha_s == pytest.approx(LINK.alpha_s, rel=1e-3)
    assert found.bytes_per_s == pytest.approx(LINK.bytes_per_s, rel=1e-3)


def test_a_link_that_shows_no_bandwidth_gets_the_nominal_one() -> None:
    flat = [(LinkPoint(size, 1, 0.002), LinkPoint(size, 11, 0.001)) for size in (10, 1_000_000)]
    assert fit_pieces(flat, 5e8) == LinkModel(0.002, 0.0, 5e8)


def test_free_pieces_are_never_gathered() -> None:
    costs = PieceCosts(LinkModel(1e-3, 0.0, 1e9), gather_cell_s=1e-9, scatter_cell_s=0.0)
    assert not choose(costs, 1_000_000, num_direct=1000, num_staged=1, num_cells=1000).staged
