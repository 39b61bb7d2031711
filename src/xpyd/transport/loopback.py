"""Transports inside one process, over a shared hub: for unit tests, and to see the hand-off without a network."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from xpyd.kv.layout import Span
from xpyd.transport.base import Bytes, Capabilities, MessageTicket, Ticket, Transport, Verb


class LoopbackTicket(MessageTicket):
    complete = False

    def __init__(self, transport: Transport, peer: int, views: list[Bytes], incoming: bool) -> None:
        super().__init__(transport, peer, sum(view.nbytes for view in views), incoming)
        self.views = views

    def _poll(self) -> bool:
        return self.complete


class CopyTicket(Ticket):
    """A batch of one-sided copies, done at the hub's next turn."""

    complete = False

    def __init__(self, transport: Transport, peer: int, pairs: list[tuple[Bytes, Bytes]], verb: Verb) -> None:
        super().__init__(transport, peer, sum(source.nbytes for source, _ in pairs), verb)
        self._pairs = pairs

    def copy(self) -> None:
        for source, destination in self._pairs:
            destination[:] = source
        self.complete = True

    def _poll(self) -> bool:
        return self.complete


class Hub:
    """Matches sends and receives of the transports that share it, in posting order per (source, destination, tag).

    One-sided batches need no match; they are copied in posting order.
    """

    def __init__(self) -> None:
        self.buffers: dict[int, Bytes] = {}  # by rank
        self.copies: deque[CopyTicket] = deque()
        self._sends: dict[tuple[int, int, int], deque[LoopbackTicket]] = defaultdict(deque)
        self._recvs: dict[tuple[int, int, int], deque[LoopbackTicket]] = defaultdict(deque)

    def post(self, key: tuple[int, int, int], ticket: LoopbackTicket, is_send: bool) -> None:
        (self._sends if is_send else self._recvs)[key].append(ticket)

    def forget(self, rank: int, peer: int) -> None:
        """Drop what is posted between the two, as complete where nobody waits for its content."""
        for posted in (self._sends, self._recvs):
            for key in [key for key in posted if {key[0], key[1]} == {rank, peer}]:
                for ticket in posted.pop(key):
                    ticket.complete = True

    def match(self) -> bool:
        moved = bool(self.copies)
        while self.copies:
            self.copies.popleft().copy()
        for key in list(self._sends):
            sends, recvs = self._sends[key], self._recvs[key]
            while sends and recvs:
                send, recv = sends.popleft(), recvs.popleft()
                assert send.nbytes == recv.nbytes, f"{key}: both ends plan the same pieces"
                ends = np.cumsum([view.nbytes for view in recv.views])[:-1]
                for view, data in zip(recv.views, np.split(np.concatenate(send.views), ends), strict=True):
                    view[:] = data
                send.complete = recv.complete = True
                moved = True
        return moved


class LoopbackTransport(Transport):
    name: ClassVar[str] = "loopback"
    capabilities: ClassVar[Capabilities] = Capabilities(
        two_sided=True,
        one_sided_read=True,
        one_sided_write=True,
        cross_process=False,
        cross_node=False,
        peer_errors=False,
        takes_fabric=False,
    )

    def __init__(self, rank: int, hub: Hub, message_bytes: int = 0) -> None:
        super().__init__()
        self.message_bytes = message_bytes
        self._rank = rank
        self._hub = hub

    def register(self, buffer: Bytes, unit_bytes: int = 0) -> None:
        super().register(buffer, unit_bytes)
        self._hub.buffers[self._rank] = buffer

    def address(self) -> bytes:
        return b""

    def connect(self, addresses: Mapping[int, bytes]) -> None:
        """Nothing to do: the hub is the connection."""

    def send(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        ticket = LoopbackTicket(self, peer, [self._view(span) for span in spans], incoming=False)
        self._hub.post((self._rank, peer, tag), ticket, is_send=True)
        self.sent_bytes += ticket.nbytes
        return ticket

    def recv(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        ticket = LoopbackTicket(self, peer, [self._view(span) for span in spans], incoming=True)
        self._hub.post((peer, self._rank, tag), ticket, is_send=False)
        return ticket

    def read(self, peer: int, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        return self._post(peer, self._pairs(peer, source, self._rank, destination), Verb.READ)

    def write(self, peer: int, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        return self._post(peer, self._pairs(self._rank, source, peer, destination), Verb.WRITE)

    def progress(self) -> bool:
        return self._hub.match()

    def drop(self, peer: int) -> bool:
        """Take back what was posted to and from ``peer``: it is quiet at once."""
        self._hub.forget(self._rank, peer)
        return True

    def route(self, peer: int) -> str:
        return "loopback"

    def close(self) -> None:
        """Nothing is held."""

    def _post(self, peer: int, pairs: list[tuple[Bytes, Bytes]], verb: Verb) -> CopyTicket:
        ticket = CopyTicket(self, peer, pairs, verb)
        self._hub.copies.append(ticket)
        return ticket

    def _pairs(
        self, source_rank: int, source: Sequence[Span], destination_rank: int, destination: Sequence[Span]
    ) -> list[tuple[Bytes, Bytes]]:
        here, there = self._hub.buffers[source_rank], self._hub.buffers[destination_rank]
        return [(_cut(here, a), _cut(there, b)) for a, b in zip(source, destination, strict=True)]


def _cut(buffer: Bytes, span: Span) -> Bytes:
    return buffer[span.offset : span.offset + span.nbytes]
