"""The in-process transport: pairs by source, destination and tag, in posting order, and counts what has landed."""

from __future__ import annotations

import numpy as np
import pytest

from xpyd.kv.layout import Span
from xpyd.transport.base import Bytes, Transport, TransportError
from xpyd.transport.loopback import Hub, LoopbackTransport


def ranks(count: int, nbytes: int = 8) -> tuple[list[LoopbackTransport], list[Bytes]]:
    """Transports on one hub; rank r's buffer holds r + 1 everywhere."""
    hub = Hub()
    transports = [LoopbackTransport(rank, hub) for rank in range(count)]
    buffers = [np.full(nbytes, rank + 1, np.uint8) for rank in range(count)]
    for transport, buffer in zip(transports, buffers, strict=True):
        transport.register(buffer)
    return transports, buffers


def test_two_sources_with_one_tag_are_kept_apart() -> None:
    (a, b, c), (_, _, landed) = ranks(3)
    first, second = c.recv(0, [Span(0, 4)], tag=5), c.recv(1, [Span(4, 4)], tag=5)
    b.send(2, [Span(0, 4)], tag=5)
    c.progress()
    assert (first.done(), second.done()) == (False, True)
    a.send(2, [Span(0, 4)], tag=5)
    c.progress()
    assert first.done()
    assert landed.tolist() == [1] * 4 + [2] * 4


def test_the_receive_may_be_late() -> None:
    (a, b), (_, landed) = ranks(2)
    sent = a.send(1, [Span(0, 8)], tag=0)
    assert not a.progress()
    assert not sent.done()
    b.recv(0, [Span(0, 8)], tag=0)
    assert b.progress()
    assert sent.done()
    assert landed.tolist() == [1] * 8


def test_bytes_count_as_received_once_they_have_landed_and_once_only() -> None:
    (a, b), _ = ranks(2)
    ticket = b.recv(0, [Span(0, 8)], tag=0)
    assert not ticket.done()
    assert b.received_bytes == 0
    a.send(1, [Span(0, 8)], tag=0)
    b.progress()
    assert ticket.done()
    assert ticket.done()
    assert b.received_bytes == 8
    assert a.sent_bytes == 8


def test_ends_that_planned_different_pieces_are_a_bug() -> None:
    (a, b), _ = ranks(2)
    a.send(1, [Span(0, 4)], tag=0)
    b.recv(0, [Span(0, 8)], tag=0)
    with pytest.raises(AssertionError, match="same pieces"):
        b.progress()


def test_a_read_takes_the_peers_bytes_without_the_peer() -> None:
    (a, b), (_, landed) = ranks(2)
    ticket = b.read(0, [Span(0, 2), Span(6, 2)], [Span(4, 2), Span(0, 2)])
    assert not ticket.done()
    assert b.received_bytes == 0
    assert b.progress()
    assert ticket.done()
    assert ticket.done()
    assert landed.tolist() == [1, 1, 2, 2, 1, 1, 2, 2]
    assert (b.received_bytes, a.sent_bytes, a.received_bytes) == (4, 0, 0), "only the reader can count"


def test_a_write_lands_at_the_peer_and_is_counted_by_the_writer() -> None:
    (a, b), (_, landed) = ranks(2)
    ticket = a.write(1, [Span(0, 4)], [Span(2, 4)])
    assert not ticket.done()
    a.progress()
    assert ticket.done()
    assert landed.tolist() == [2, 2, 1, 1, 1, 1, 2, 2]
    assert (a.written_bytes, a.received_bytes, b.received_bytes) == (4, 0, 0)


@pytest.mark.parametrize("call", ["send", "recv", "read", "write"])
def test_what_a_transport_does_not_offer_says_which_capability_to_ask(call: str) -> None:
    (a, _), _ = ranks(2)
    arguments = (1, Span(0, 4), 0) if call in ("send", "recv") else (1, [Span(0, 4)], [Span(0, 4)])
    with pytest.raises(TransportError, match=rf"loopback has no {call}\(\): ask capabilities\.(two|one)_sided"):
        getattr(Transport, call)(a, *arguments)
