"""KV over MPI's non-blocking point-to-point calls: the comparison for UCX, and the way out where UCX is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from xpyd.kv.layout import Span
from xpyd.mpi import MPI
from xpyd.transport.base import Bytes, Capabilities, Ticket, Transport


class MpiTicket(Ticket):
    def __init__(self, request: Any) -> None:
        self._request = request

    def done(self) -> bool:
        return bool(self._request.Test())


class MpiTransport(Transport):
    """On a communicator of its own (collective to create). MPI ends the whole job when a peer dies."""

    name: ClassVar[str] = "mpi"
    capabilities: ClassVar[Capabilities] = Capabilities(cross_process=True, cross_node=True, peer_errors=False)

    def __init__(self, comm: Any) -> None:
        super().__init__()
        self._comm = comm.Dup()

    def register(self, buffer: Bytes) -> None:
        self._buffer = buffer

    def address(self) -> bytes:
        return b""

    def connect(self, addresses: Mapping[int, bytes]) -> None:
        """Exchange one byte with every peer: MPI connects at the first message."""
        tokens = [np.zeros(1, np.uint8) for _ in addresses]
        requests = [self._comm.Irecv(token, source=peer) for peer, token in zip(addresses, tokens, strict=True)]
        requests += [self._comm.Isend(np.ones(1, np.uint8), dest=peer) for peer in addresses]
        MPI.Request.Waitall(requests)

    def send(self, peer: int, span: Span, tag: int) -> Ticket:
        self.sent_bytes += span.nbytes
        return MpiTicket(self._comm.Isend([self._view(span), MPI.BYTE], dest=peer, tag=tag))

    def recv(self, peer: int, span: Span, tag: int) -> Ticket:
        self.received_bytes += span.nbytes
        return MpiTicket(self._comm.Irecv([self._view(span), MPI.BYTE], source=peer, tag=tag))

    def progress(self) -> bool:
        """A probe makes MPI move all pending messages; whether any moved is not told."""
        self._comm.Iprobe()
        return False

    def route(self, peer: int) -> str:
        return "unknown"  # MPI chooses per message and has no portable way to say

    def close(self) -> None:
        if self._comm is not None:
            self._comm.Free()
            self._comm = None

    def _view(self, span: Span) -> Bytes:
        return self._buffer[span.offset : span.offset + span.nbytes]
