"""KV over UCX: tagged sends and receives, worker addresses exchanged by the caller, no thread.

Spans of the registered buffer go to UCX as they are: no copy is made in Python.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from xpyd.kv.layout import Span
from xpyd.transport.base import TAG_LIMIT, Bytes, Capabilities, MessageTicket, Ticket, Transport, TransportError
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.ucx_binding import Binding, installed_binding
from xpyd.transport.ucx_messages import Table, stretches
from xpyd.transport.ucx_route import library_version, opened_resources, query_route

RANK_SHIFT = 32  # UCX matches by tag alone, whoever sends: the source's rank lies above the piece's tag
WARM_TAG = TAG_LIMIT  # just above the tag of any piece
MAX_PROGRESS_ROUNDS = 16


class UcxTicket(MessageTicket):
    def __init__(
        self,
        request: Any,
        endpoint: Any,
        transport: UcxTransport,
        peer: int,
        nbytes: int,
        incoming: bool,
        memory: Bytes | Table,
    ) -> None:
        """``memory``: what UCX must find there until the end, the bytes or the table of their stretches."""
        super().__init__(transport, peer, nbytes, incoming)
        self._memory = memory
        self._request = request
        self._cancel = transport.cancel
        self._endpoint = endpoint  # a receive belongs to no endpoint: only this one knows that its peer died

    def cancel(self) -> None:
        """A receive belongs to no endpoint, so that dropping its peer does not end it."""
        if self._incoming and not self._request.completed:
            self._cancel(self._request)

    def quiet(self) -> bool:
        """UCX is through with the memory: an error of the endpoint alone does not say so."""
        return bool(self._done or self._request.completed)

    def _poll(self) -> bool:
        if not self._request.completed:
            self._endpoint.raise_on_error()
            return False
        self._request.check_error()
        return True


class UcxTransport(Transport):
    name: ClassVar[str] = "ucx"
    capabilities: ClassVar[Capabilities] = Capabilities(
        two_sided=True,
        one_sided_read=False,
        one_sided_write=False,
        cross_process=True,
        cross_node=True,
        peer_errors=True,
        takes_fabric=True,
    )

    def __init__(
        self, rank: int, settings: Mapping[str, str], peer_errors: bool = True, message_bytes: int = 0
    ) -> None:
        """``settings``: UCX options without their UCX_ prefix. Raises TransportError where UCX refuses them."""
        super().__init__()
        self._rank = rank
        self._peer_errors = peer_errors
        kind = installed_binding()
        try:
            self._binding = kind(settings, peer_errors)
        except Exception as error:
            raise _refusal(kind, settings, error) from error
        self.message_bytes = message_bytes if self._binding.gathers else 0
        self._endpoints: dict[int, Any] = {}
        self._abandoned: list[Ticket] = []  # of peers that did not answer: UCX may still write to their memory

    @classmethod
    def build(cls, fabric: FabricConfig, peer_errors: bool, comm: Any) -> UcxTransport:
        fabric.check_devices()
        transport = cls(comm.rank, fabric.settings(), peer_errors, fabric.message_bytes)
        fabric.check_usable(transport.devices())
        return transport

    def register(self, buffer: Bytes, unit_bytes: int = 0) -> None:
        super().register(buffer, unit_bytes)
        self._begin = buffer.ctypes.data

    def address(self) -> bytes:
        return self._binding.address()

    def devices(self) -> list[str]:
        """The devices that UCX opened, such as ``eth0``, ``mlx5_0:1`` and ``memory``."""
        return sorted({resource.rpartition("/")[2] for resource in self.resources()})

    def resources(self) -> list[str]:
        """Every ``transport/device`` that UCX opened, such as ``tcp/eth0`` and ``rc_mlx5/mlx5_0:1``."""
        return opened_resources(self._binding.info())

    def software(self) -> tuple[str, str]:
        """The binding and the version of the UCX that it runs on, such as ``ucxx`` and ``1.21.0``."""
        return self._binding.name, library_version(self._binding.library())

    def connect(self, addresses: Mapping[int, bytes]) -> None:
        for peer, address in addresses.items():
            try:
                self._endpoints[peer] = self._binding.endpoint(address)
            except Exception as error:
                raise TransportError(
                    f"UCX finds no way to rank {peer}: {error}; do fabric.tls and fabric.net_devices name something "
                    "that both nodes have, and that reports a dead peer (or transport.peer_errors=false)?"
                ) from error
        counted = self.received_bytes
        for nbytes in (8, 1 << 20):  # wire-up and rendezvous are done before any stamp
            self._warm(addresses, nbytes)
        self.received_bytes = counted

    def send(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        spans = stretches(spans)
        if len(spans) == 1:
            (span,) = spans
            self.sent_bytes += span.nbytes
            return self._send(peer, self._view(span), self._begin + span.offset, tag)
        table, nbytes = self._table(spans)
        self.sent_bytes += nbytes
        endpoint = self._endpoints[peer]
        with self._failing_at_once(peer, nbytes):
            request = self._binding.gather(endpoint, table, self._rank << RANK_SHIFT | tag)
        return UcxTicket(request, endpoint, self, peer, nbytes, False, table)

    def recv(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        spans = stretches(spans)
        if len(spans) == 1:
            (span,) = spans
            return self._recv(peer, self._view(span), self._begin + span.offset, tag)
        table, nbytes = self._table(spans)
        request = self._binding.scatter(table, nbytes, peer << RANK_SHIFT | tag)
        return UcxTicket(request, self._endpoints[peer], self, peer, nbytes, True, table)

    def progress(self) -> bool:
        """A few UCX progress rounds, until nothing more moves."""
        moved = False
        for _ in range(MAX_PROGRESS_ROUNDS):
            if not self._binding.progress():
                break
            moved = True
        return moved

    def drop(self, peer: int) -> bool:
        """Close the endpoint by force, which ends all sends; receives end by ``cancel``.

        Without error handling UCX would wait for the peer instead, which never answers: then nothing is promised.
        """
        if self._peer_errors and peer in self._endpoints:
            self._binding.close(self._endpoints[peer])
        return self._peer_errors

    def cancel(self, request: Any) -> None:
        self._binding.cancel(request)

    def route(self, peer: int) -> str:
        """Every ``transport/device`` that the endpoint uses, such as ``tcp/eth0`` or ``posix/memory+cma/memory``."""
        return query_route(self._binding.library(), self._binding.handle(self._endpoints[peer]))

    def close(self) -> None:
        self._endpoints.clear()

    def _send(self, peer: int, view: Bytes, address: int, tag: int) -> UcxTicket:
        """``address`` is that of ``view``'s first byte: asking numpy for it takes longer than the call."""
        endpoint = self._endpoints[peer]
        with self._failing_at_once(peer, view.nbytes):
            request = self._binding.send(endpoint, view, address, self._rank << RANK_SHIFT | tag)
        return UcxTicket(request, endpoint, self, peer, view.nbytes, False, view)

    def _recv(self, peer: int, view: Bytes, address: int, tag: int) -> UcxTicket:
        endpoint = self._endpoints[peer]
        request = self._binding.recv(endpoint, view, address, peer << RANK_SHIFT | tag)
        return UcxTicket(request, endpoint, self, peer, view.nbytes, True, view)

    def _table(self, spans: Sequence[Span]) -> tuple[Table, int]:
        """The stretches of memory of ``spans``, and their bytes."""
        table = np.array(spans, np.uint64)
        table[:, 0] += np.uint64(self._begin)
        return table, int(table[:, 1].sum())

    @contextmanager
    def _failing_at_once(self, peer: int, nbytes: int) -> Iterator[None]:
        """To a peer that is known to be dead, posting alone fails."""
        try:
            yield
        except Exception as error:
            raise TransportError(f"sending {nbytes} bytes to rank {peer} failed at once: {error}") from error

    def _warm(self, peers: Collection[int], nbytes: int) -> None:
        """Exchange a message with every one of ``peers``. Raises TransportError when none comes in time."""
        tickets: list[Ticket] = []
        for peer in peers:
            landing, leaving = np.empty(nbytes, np.uint8), np.zeros(nbytes, np.uint8)
            tickets.append(self._recv(peer, landing, landing.ctypes.data, WARM_TAG))
            tickets.append(self._send(peer, leaving, leaving.ctypes.data, WARM_TAG))
        deadline = time.monotonic() + self.connect_timeout_s
        while not all(ticket.done() for ticket in tickets):
            self._binding.progress()
            if time.monotonic() > deadline:
                self._abandoned += tickets
                raise TransportError(
                    f"no first message with ranks {sorted(peers)} within {self.connect_timeout_s:.0f} s; is a "
                    "firewall between the nodes, or the wrong fabric.net_devices?"
                )


def _refusal(kind: type[Binding], settings: Mapping[str, str], error: Exception) -> TransportError:
    """UCX says no more than "Invalid parameter": find the option without which it starts."""
    culprits = []
    for left_out in settings:
        try:
            kind({key: value for key, value in settings.items() if key != left_out}, True)
        except Exception:  # so it is not this one alone
            continue
        culprits.append(f"{left_out}={settings[left_out]}")
    hint = f"it starts without {' or without '.join(culprits)}" if culprits else "more than one option is wrong"
    return TransportError(
        f"UCX does not start with {dict(settings)}: {error}; {hint} (fabric.tls, fabric.net_devices, fabric.ucx; UCX's "
        "own message is on stderr)"
    )
