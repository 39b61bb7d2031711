"""Transports inside one process, over a shared hub: for unit tests, and to see the hand-off without a network."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from typing import ClassVar

from xpyd.kv.layout import Span
from xpyd.transport.base import Bytes, Capabilities, Ticket, Transport


class LoopbackTicket(Ticket):
    complete = False

    def _poll(self) -> bool:
        return self.complete


class Hub:
    """Matches sends and receives of the transports that share it, in posting order per (source, destination, tag)."""

    def __init__(self) -> None:
        self._sends: dict[tuple[int, int, int], deque[LoopbackTicket]] = defaultdict(deque)
        self._recvs: dict[tuple[int, int, int], deque[LoopbackTicket]] = defaultdict(deque)

    def post(self, key: tuple[int, int, int], ticket: LoopbackTicket, is_send: bool) -> None:
        (self._sends if is_send else self._recvs)[key].append(ticket)

    def match(self) -> bool:
        moved = False
        for key in list(self._sends):
            sends, recvs = self._sends[key], self._recvs[key]
            while sends and recvs:
                send, recv = sends.popleft(), recvs.popleft()
                assert send.view.nbytes == recv.view.nbytes, f"{key}: both ends plan the same pieces"
                recv.view[:] = send.view
                send.complete = recv.complete = True
                moved = True
        return moved


class LoopbackTransport(Transport):
    name: ClassVar[str] = "loopback"
    capabilities: ClassVar[Capabilities] = Capabilities(cross_process=False, cross_node=False, peer_errors=False)

    def __init__(self, rank: int, hub: Hub) -> None:
        super().__init__()
        self._rank = rank
        self._hub = hub

    def register(self, buffer: Bytes) -> None:
        self._buffer = buffer

    def address(self) -> bytes:
        return b""

    def connect(self, addresses: Mapping[int, bytes]) -> None:
        """Nothing to do: the hub is the connection."""

    def send(self, peer: int, span: Span, tag: int) -> Ticket:
        ticket = LoopbackTicket(self, peer, self._view(span), incoming=False)
        self._hub.post((self._rank, peer, tag), ticket, is_send=True)
        self.sent_bytes += span.nbytes
        return ticket

    def recv(self, peer: int, span: Span, tag: int) -> Ticket:
        ticket = LoopbackTicket(self, peer, self._view(span), incoming=True)
        self._hub.post((peer, self._rank, tag), ticket, is_send=False)
        return ticket

    def progress(self) -> bool:
        return self._hub.match()

    def route(self, peer: int) -> str:
        return "loopback"

    def close(self) -> None:
        """Nothing is held."""

    def _view(self, span: Span) -> Bytes:
        return self._buffer[span.offset : span.offset + span.nbytes]
