"""KV over MPI's non-blocking point-to-point calls: the comparison for UCX, and the way out where UCX is missing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from xpyd.kv.layout import Span
from xpyd.transport.base import Bytes, Capabilities, MessageTicket, Ticket, Transport, TransportError
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.flow import tag_mask


class MpiTicket(MessageTicket):
    def __init__(self, request: Any, transport: MpiTransport, peer: int, view: Bytes, incoming: bool) -> None:
        super().__init__(transport, peer, view.nbytes, incoming)
        self._view = view  # stays until done
        self._request = request
        self._mpi = transport.mpi
        self._status = self._mpi.Status()

    def cancel(self) -> None:
        """A receive that has met no send can be taken back; MPI takes back no send."""
        if self._incoming and not self._done and self._request != self._mpi.REQUEST_NULL:
            self._request.Cancel()

    def quiet(self) -> bool:
        """Also where MPI ended the request with an error: a peer whose process has ended (ULFM)."""
        try:
            return self._done or self._request == self._mpi.REQUEST_NULL or bool(self._request.Test())
        except self._mpi.Exception:
            return bool(self._request == self._mpi.REQUEST_NULL)

    def _poll(self) -> bool:
        if not self._request.Test(self._status):
            return False
        landed = self._status.Get_count(self._mpi.BYTE) if self._incoming else self.nbytes
        if landed != self.nbytes:
            raise ValueError(f"{landed} bytes came; the two ranks made different plans")
        return True


class MpiTransport(Transport):
    """On a communicator of its own (collective to create). MPI ends the whole job when a peer dies."""

    name: ClassVar[str] = "mpi"
    capabilities: ClassVar[Capabilities] = Capabilities(
        two_sided=True,
        one_sided_read=False,
        one_sided_write=False,
        cross_process=True,
        cross_node=True,
        peer_errors=False,
        takes_fabric=False,
    )

    def __init__(self, comm: Any) -> None:
        # only here: a front end asks this class for its capabilities, and must not start MPI
        from xpyd.mpi import MPI, PROCESS_FAILED

        super().__init__()
        self.mpi = MPI
        self._process_failed = PROCESS_FAILED
        self._comm = comm.Dup()
        self._tag_mask = tag_mask(MPI.COMM_WORLD.Get_attr(MPI.TAG_UB) or 0)  # an attribute of the world alone

    @classmethod
    def build(cls, fabric: FabricConfig, peer_errors: bool, comm: Any) -> MpiTransport:
        return cls(comm)

    def address(self) -> bytes:
        return b""

    def connect(self, addresses: Mapping[int, bytes]) -> None:
        """Exchange one byte with every peer: MPI connects at the first message."""
        tokens = [np.zeros(1, np.uint8) for _ in addresses]
        requests = [self._comm.Irecv(token, source=peer) for peer, token in zip(addresses, tokens, strict=True)]
        requests += [self._comm.Isend(np.ones(1, np.uint8), dest=peer) for peer in addresses]
        deadline = time.monotonic() + self.connect_timeout_s
        while not self.mpi.Request.Testall(requests):
            if time.monotonic() > deadline:
                bound = f"{self.connect_timeout_s:.0f} s"
                raise TransportError(f"no first message with ranks {sorted(addresses)} within {bound}")

    def send(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        (span,) = spans
        self.sent_bytes += span.nbytes
        view = self._view(span)
        request = self._comm.Isend([view, self.mpi.BYTE], dest=peer, tag=tag & self._tag_mask)
        return MpiTicket(request, self, peer, view, incoming=False)

    def recv(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        (span,) = spans
        view = self._view(span)
        request = self._comm.Irecv([view, self.mpi.BYTE], source=peer, tag=tag & self._tag_mask)
        return MpiTicket(request, self, peer, view, incoming=True)

    def progress(self) -> bool:
        """A probe makes MPI move all pending messages; whether any moved is not told."""
        try:
            self._comm.Iprobe()
        except self.mpi.Exception as error:  # a rank has ended (ULFM): who, and what now, the client finds out
            if error.Get_error_class() not in self._process_failed:
                raise
            self._comm.Ack_failed()
        return False

    def route(self, peer: int) -> str:
        return "unknown"  # MPI chooses per message and has no portable way to say

    def close(self) -> None:
        if self._comm is not None:
            self._comm.Free()
            self._comm = None
