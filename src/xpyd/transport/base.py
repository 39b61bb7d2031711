"""What a transport is: it moves spans between registered buffers of two ranks, and knows nothing of requests.

Two-sided: the source posts a send, the destination a receive, and the tag pairs them. No thread: a transport moves
only inside ``progress()``, which the worker calls between layers and between steps. Names follow UCX.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import Span

Bytes = NDArray[np.uint8]
TAG_LIMIT = 2**31  # tags are below it, and fit a C int


@dataclass(frozen=True)
class Capabilities:
    """What a transport declares; checked before anything starts."""

    cross_process: bool
    cross_node: bool
    peer_errors: bool  # a dead peer is reported by the transport itself, within seconds


class TransportError(RuntimeError):
    """A transfer failed; the message names the peer and what to do."""


class Ticket(ABC):
    """One posted send or receive of ``view``. Bytes received are counted here, when they have landed."""

    def __init__(self, transport: Transport, peer: int, view: Bytes, incoming: bool) -> None:
        self.view = view  # the network reads or writes this memory until the ticket is done
        self._transport = transport
        self._peer = peer
        self._incoming = incoming
        self._done = False

    def done(self) -> bool:
        """True when complete. Raises TransportError when it failed. Never blocks; does not progress."""
        if self._done:
            return True
        try:
            self._done = self._poll()
        except Exception as error:
            raise self.failure(error) from error
        if self._done and self._incoming:
            self._transport.received_bytes += self.view.nbytes
        return self._done

    def failure(self, error: Exception) -> TransportError:
        """The error of this ticket, with bytes and peer."""
        verb = "receiving {} bytes from" if self._incoming else "sending {} bytes to"
        what = f"{verb.format(self.view.nbytes)} rank {self._peer}"
        return TransportError(f"{what} failed: {type(error).__name__}: {error}; did that rank die?")

    @abstractmethod
    def _poll(self) -> bool:
        """True when complete; raises whatever the binding raises."""


class Transport(ABC):
    """Spans between registered buffers of ranks. Create, ``register``, ``address``, ``connect``, post, ``close``."""

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    @abstractmethod
    def register(self, buffer: Bytes) -> None:
        """Take ``buffer`` (shape [nbytes], uint8, a view of the pool) as the memory that spans refer to."""

    @abstractmethod
    def address(self) -> bytes:
        """What a peer needs to reach this rank; exchanged over MPI by the caller."""

    @abstractmethod
    def connect(self, addresses: Mapping[int, bytes]) -> None:
        """Create an endpoint to each rank of ``addresses`` and leave it warm (first message already exchanged).

        Collective among the ranks concerned: each lists the others.
        """

    @abstractmethod
    def send(self, peer: int, span: Span, tag: int) -> Ticket:
        """Post a send of ``span`` to ``peer``; no copy is made, the span must stay unchanged until done."""

    @abstractmethod
    def recv(self, peer: int, span: Span, tag: int) -> Ticket:
        """Post a receive from ``peer`` straight into ``span``."""

    @abstractmethod
    def progress(self) -> bool:
        """Move what can be moved without blocking; True when something moved."""

    @abstractmethod
    def route(self, peer: int) -> str:
        """The transport and device really used towards ``peer``, such as ``tcp/eth0``, or "unknown"."""

    @abstractmethod
    def close(self) -> None:
        """Release endpoints and memory. Safe to call twice."""

    def __init__(self) -> None:
        self.sent_bytes = 0  # counted when posted
        self.received_bytes = 0  # counted when landed, see Ticket
