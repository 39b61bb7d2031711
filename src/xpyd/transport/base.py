"""What a transport is: it moves spans between registered buffers of two ranks, and knows nothing of requests.

Two-sided: the source posts a send, the destination a receive, and the tag pairs them. One-sided: one rank alone reads
from, or writes to, the buffer that the other has registered. A transport declares which of them it offers, and callers
ask its ``capabilities``, never its name. No thread: a transport moves only inside ``progress()``, which the worker
calls between layers and between steps. Names follow UCX.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import Span

if TYPE_CHECKING:
    from xpyd.transport.fabric import FabricConfig

Bytes = NDArray[np.uint8]
TAG_LIMIT = 2**31  # tags are below it, and fit a C int
CONNECT_TIMEOUT_S = 30.0
UNKNOWN = "unknown"  # the route of a transport that cannot tell


@dataclass(frozen=True)
class Capabilities:
    """What a transport declares; checked before anything starts (``TransportConfig.check``)."""

    two_sided: bool  # send and recv
    one_sided_read: bool  # read
    one_sided_write: bool  # write
    cross_process: bool
    cross_node: bool
    peer_errors: bool  # a dead peer is reported by the transport itself, within seconds
    takes_fabric: bool  # can be held to fabric.tls, fabric.net_devices and fabric.ucx


class TransportError(RuntimeError):
    """A transfer failed; the message names the peer and what to do."""


class Verb(StrEnum):
    """What a ticket is for; the value reads in its error."""

    SEND = "sending {} bytes to"
    RECEIVE = "receiving {} bytes from"
    READ = "reading {} bytes of"
    WRITE = "writing {} bytes to"


class Ticket(ABC):
    """What was posted: one send or receive, or one batch of reads or writes. Counts bytes once they have landed."""

    def __init__(self, transport: Transport, peer: int, nbytes: int, verb: Verb) -> None:
        self.nbytes = nbytes
        self._transport = transport
        self._peer = peer
        self._verb = verb
        self._done = False

    def done(self) -> bool:
        """True when complete. Raises TransportError when it failed. Never blocks; does not progress."""
        if self._done:
            return True
        try:
            self._done = self._poll()
        except Exception as error:
            raise self.failure(error) from error
        if self._done and self._verb in (Verb.RECEIVE, Verb.READ):
            self._transport.received_bytes += self.nbytes
        if self._done and self._verb is Verb.WRITE:
            self._transport.written_bytes += self.nbytes
        return self._done

    def cancel(self) -> None:  # noqa: B027 - nothing to do where the transport's ``drop`` does it all
        """Ask for an early end, after the peer was dropped; ``quiet`` says when that has come."""

    def quiet(self) -> bool:
        """True once the network touches this memory no more: complete, failed for good, or cancelled. Never raises."""
        try:
            self._done = self._done or self._poll()
            return self._done
        except Exception:
            return self._over()

    def _over(self) -> bool:
        """Whether what failed is also over; a transport that cannot tell says no."""
        return False

    def failure(self, error: Exception) -> TransportError:
        """The error of this ticket, with bytes and peer."""
        what = f"{self._verb.format(self.nbytes)} rank {self._peer}"
        return TransportError(f"{what} failed: {type(error).__name__}: {error}; did that rank die?")

    @abstractmethod
    def _poll(self) -> bool:
        """True when complete; raises whatever the binding raises."""


class MessageTicket(Ticket):
    """One posted send or receive, whose memory the network reads or writes until the ticket is done."""

    def __init__(self, transport: Transport, peer: int, nbytes: int, incoming: bool) -> None:
        super().__init__(transport, peer, nbytes, Verb.RECEIVE if incoming else Verb.SEND)
        self._incoming = incoming


class Transport(ABC):
    """Spans between registered buffers of ranks. Create, ``register``, ``address``, ``connect``, post, ``close``."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    connect_timeout_s = CONNECT_TIMEOUT_S

    @classmethod
    def build(cls, fabric: FabricConfig, peer_errors: bool, comm: Any) -> Transport:
        """The transport of this rank, on a fabric; collective over ``comm``. Raises TransportError."""
        raise TransportError(f"transport {cls.name} works inside one process only")

    def register(self, buffer: Bytes, unit_bytes: int = 0) -> None:
        """Take ``buffer`` (shape [nbytes], uint8, a view of the pool) as the memory that spans refer to.

        ``unit_bytes``: most spans begin at and hold a multiple of it, such as a KV block; a one-sided transport may
        prepare for these. 0: nothing is known.
        """
        self._buffer = buffer
        self._unit_bytes = unit_bytes

    @abstractmethod
    def address(self) -> bytes:
        """What a peer needs to reach this rank; exchanged over MPI by the caller."""

    @abstractmethod
    def connect(self, addresses: Mapping[int, bytes]) -> None:
        """Create an endpoint to each rank of ``addresses`` and leave it warm (first message already exchanged).

        Collective among the ranks concerned: each lists the others. May be called again for other ranks. Raises
        TransportError where a rank does not answer within ``connect_timeout_s``.
        """

    def send(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        """Post one message with the bytes of ``spans``, in order; they must stay unchanged until done.

        More than one span only where ``message_bytes`` is not 0: a scatter/gather list.
        """
        raise self._not_offered("send", "two_sided")

    def recv(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        """Post a receive of one message from ``peer`` straight into ``spans``, in order; lists as in ``send``."""
        raise self._not_offered("recv", "two_sided")

    def read(self, peer: int, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        """Read ``source[i]`` of the buffer that ``peer`` registered into ``destination[i]`` of one's own, one batch.

        The peer posts nothing, but must call ``progress()`` meanwhile: over TCP its UCX serves the read. Spans of a
        pair have equal length; the source must stay unchanged until done. Raises TransportError where the peer is known
        to be dead.
        """
        raise self._not_offered("read", "one_sided_read")

    def write(self, peer: int, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        """Write ``source[i]`` of one's own buffer to ``destination[i]`` of the peer's, one batch.

        Done means landed at the peer, which is not told: say so in a message. Raises as ``read``.
        """
        raise self._not_offered("write", "one_sided_write")

    @abstractmethod
    def progress(self) -> bool:
        """Move what can be moved without blocking; True when something moved."""

    def drop(self, peer: int) -> bool:
        """Give up on ``peer``: nothing moves to or from it any more.

        True: its tickets will be ``quiet`` as this end progresses, so their memory can be used again. False: that
        cannot be promised; memory that such a peer may reach must never be used again, unless its tickets are quiet.
        """
        return False

    @abstractmethod
    def route(self, peer: int) -> str:
        """The transport and device really used towards ``peer``, such as ``tcp/eth0``, or "unknown"."""

    @abstractmethod
    def close(self) -> None:
        """Release endpoints and memory. Safe to call twice."""

    def __init__(self) -> None:
        self.message_bytes = 0  # scattered spans share messages of up to this size; 0: a message carries one span
        self.sent_bytes = 0  # counted when posted
        self.received_bytes = 0  # received or read: counted when landed, see Ticket
        self.written_bytes = 0  # landed in a peer's buffer by one-sided writes: that peer cannot count them

    def _view(self, span: Span) -> Bytes:
        return self._buffer[span.offset : span.offset + span.nbytes]

    def _not_offered(self, call: str, capability: str) -> TransportError:
        return TransportError(f"transport {self.name} has no {call}(): ask capabilities.{capability} first")
