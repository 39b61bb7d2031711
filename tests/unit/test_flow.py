"""Flows over the loopback transport: order, window, release by layer, and bytes that arrive where they should."""

from __future__ import annotations

import numpy as np
import pytest

from xpyd.kv.layout import PoolLayout, Span
from xpyd.kv.plan import plan_request
from xpyd.transport.base import TAG_LIMIT, TransportError
from xpyd.transport.flow import (
    OneSidedFlow,
    ReadFlow,
    RecvFlow,
    SendFlow,
    WriteFlow,
    message_ends,
    tag_mask,
    tag_of,
)
from xpyd.transport.loopback import Hub, LoopbackTransport

SPANS = [Span(i * 8, 8) for i in range(6)]


def pair(nbytes: int = 48) -> tuple[LoopbackTransport, LoopbackTransport, np.ndarray, np.ndarray]:
    hub = Hub()
    source, destination = LoopbackTransport(1, hub), LoopbackTransport(2, hub)
    sent, landed = np.arange(nbytes, dtype=np.uint8), np.zeros(nbytes, np.uint8)
    source.register(sent)
    destination.register(landed)
    return source, destination, sent, landed


def test_everything_arrives_once_it_is_released() -> None:
    source, destination, sent, landed = pair()
    send, recv = SendFlow(source, 2, SPANS, 0, window=2), RecvFlow(destination, 1, SPANS, 0)
    send.release(len(SPANS))
    while not recv.advance():
        send.advance()
        source.progress()
    send.advance()
    assert send.done
    assert (sent == landed).all()
    assert source.sent_bytes == destination.received_bytes == 48


def test_nothing_leaves_before_its_release() -> None:
    source, destination, _, landed = pair()
    send, recv = SendFlow(source, 2, SPANS, 0, window=9), RecvFlow(destination, 1, SPANS, 0)
    assert not send.advance()
    assert send.begin_ns is None
    send.release(2)
    for _ in range(5):
        send.advance()
        source.progress()
        recv.advance()
    assert landed.any()
    assert not landed[16:].any()
    assert not send.done
    assert not recv.done


def test_the_window_bounds_what_is_in_flight() -> None:
    source, _, _, _ = pair()
    send = SendFlow(source, 2, SPANS, 0, window=3)
    send.release(len(SPANS))
    send.advance()
    send.advance()
    assert source.sent_bytes == 3 * 8, "no receive is posted, so nothing completes and nothing more may be posted"


def test_a_scattered_plan_moves_pool_to_pool() -> None:
    layout = PoolLayout(num_layers=2, num_blocks=3, block_bytes=8)
    source, destination, sent, landed = pair(layout.nbytes)
    plan = plan_request(layout, [2, 0], [0, 1], max_piece_bytes=5)
    send, recv = SendFlow(source, 2, plan.source, 7, 4), RecvFlow(destination, 1, plan.destination, 7)
    send.release(plan.part_ends[-1])
    while not recv.advance():
        send.advance()
        source.progress()
    for layer in (0, 1):
        for a, b in ((2, 0), (0, 1)):
            begin, end = layout.offset(layer, b), layout.offset(layer, a)
            assert (landed[begin : begin + 8] == sent[end : end + 8]).all()


@pytest.mark.parametrize("kind", [ReadFlow, WriteFlow])
def test_one_end_alone_moves_a_scattered_plan(kind: type[OneSidedFlow]) -> None:
    layout = PoolLayout(num_layers=2, num_blocks=3, block_bytes=8)
    source, destination, sent, landed = pair(layout.nbytes)
    plan = plan_request(layout, [2, 0], [0, 1], max_piece_bytes=5)
    mover, peer = (destination, 1) if kind is ReadFlow else (source, 2)
    flow = kind(mover, peer, plan.source, plan.destination, window=3)
    flow.release(plan.part_ends[0])
    drive(flow, mover)
    assert landed[: layout.layer_bytes].any()
    assert not landed[layout.layer_bytes :].any(), "layer 1 is not released"
    assert not flow.done
    flow.release(plan.part_ends[1])
    drive(flow, mover)
    assert flow.done
    assert mover.received_bytes + mover.written_bytes == 4 * layout.block_bytes
    for layer in (0, 1):
        for a, b in ((2, 0), (0, 1)):
            begin, end = layout.offset(layer, b), layout.offset(layer, a)
            assert (landed[begin : begin + 8] == sent[end : end + 8]).all()


def drive(flow: OneSidedFlow, mover: LoopbackTransport) -> None:
    while flow.advance() or mover.progress():
        pass


def test_nothing_is_read_before_its_release() -> None:
    _, destination, _, landed = pair()
    flow = ReadFlow(destination, 1, SPANS, SPANS, window=9)
    drive(flow, destination)
    assert flow.begin_ns is None
    flow.release(2)
    drive(flow, destination)
    assert flow.begin_ns is not None
    assert landed[1:16].all()
    assert not landed[16:].any()
    assert not flow.done


@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_the_window_bounds_the_pieces_of_all_batches_in_flight(window: int) -> None:
    _, destination, _, landed = pair()
    flow = ReadFlow(destination, 1, SPANS, SPANS, window)
    flow.release(len(SPANS))
    flow.advance()
    flow.advance()
    destination.progress()
    assert np.count_nonzero(landed) == 8 * min(window, len(SPANS)) - 1, "byte 0 holds 0"


def test_a_release_beyond_the_end_is_the_end() -> None:
    _, destination, sent, landed = pair()
    flow = ReadFlow(destination, 1, SPANS, SPANS, window=4)
    flow.release(len(SPANS) + 5)
    drive(flow, destination)
    assert flow.done
    assert (sent == landed).all()


@pytest.mark.parametrize(("seq", "piece"), [(0, 0), (32767, 65535), (32768, 65536), (10**9, 10**9)])
def test_tags_fit_a_c_int(seq: int, piece: int) -> None:
    assert 0 <= tag_of(seq, piece) < TAG_LIMIT


@pytest.mark.parametrize(("upper_bound", "num_bits"), [(2**31 - 1, 31), (2**28 - 1, 28), (2**23, 23), (2**62, 31)])
def test_tags_are_cut_to_what_this_mpi_takes(upper_bound: int, num_bits: int) -> None:
    assert tag_mask(upper_bound) == 2**num_bits - 1 <= upper_bound


def test_an_mpi_with_too_few_tags_is_refused() -> None:
    with pytest.raises(TransportError, match=r"32767 .*transport=ucx"):
        tag_mask(32767)


def test_messages_hold_what_fits_of_one_part() -> None:
    spans = [Span(0, 4), Span(9, 4), Span(20, 4), Span(30, 9), Span(50, 2), Span(60, 2)]
    assert message_ends(spans, (), 8) == [2, 3, 4, 6]
    assert message_ends(spans, (1, 5), 8) == [1, 3, 4, 5, 6]
    assert message_ends(spans, (), 100) == [6]
    assert message_ends(spans, (), 0) == [1, 2, 3, 4, 5, 6]
    assert message_ends([], (), 8) == []


def test_scattered_pieces_share_messages_but_no_part_waits_for_the_next() -> None:
    """Two layers of three scattered blocks, in messages of two blocks: 2 + 1 for each layer."""
    layout = PoolLayout(num_layers=2, num_blocks=6, block_bytes=8)
    hub = Hub()
    source, destination = LoopbackTransport(1, hub, message_bytes=16), LoopbackTransport(2, hub, message_bytes=16)
    sent, landed = np.arange(layout.nbytes, dtype=np.uint8), np.zeros(layout.nbytes, np.uint8)
    source.register(sent)
    destination.register(landed)
    plan = plan_request(layout, [4, 0, 2], [1, 3, 5], max_piece_bytes=64)
    assert len(plan.source) == 6
    send = SendFlow(source, 2, plan.source, 7, 9, plan.part_ends)
    recv = RecvFlow(destination, 1, plan.destination, 7, plan.part_ends)
    assert len(list(recv.flying)) == 4
    send.release(plan.part_ends[0])
    send.advance()
    assert source.sent_bytes == 3 * 8, "the first layer leaves whole while the second is not final"
    send.release(plan.part_ends[1])
    while not recv.advance():
        send.advance()
        source.progress()
    for layer in (0, 1):
        for a, b in ((4, 1), (0, 3), (2, 5)):
            begin, end = layout.offset(layer, b), layout.offset(layer, a)
            assert (landed[begin : begin + 8] == sent[end : end + 8]).all()
    assert destination.received_bytes == 48
