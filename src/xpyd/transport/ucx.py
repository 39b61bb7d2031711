"""KV over UCX: tagged sends and receives on the ucxx core API, worker addresses exchanged by the caller, no thread.

Spans of the registered buffer go to UCX as they are: no copy is made in Python. Which transport and device an
endpoint really uses is asked of UCX itself (``ucp_ep_query``). Where ucxx is missing, ucx-py's core API serves.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from xpyd.kv.layout import Span
from xpyd.transport.base import Bytes, Capabilities, Ticket, Transport, TransportError

RANK_SHIFT = 32  # UCX matches by tag alone, whoever sends: the source's rank lies above the piece's tag
WARM_TAG = (1 << 31) - 1  # a piece's tag never gets there
CONNECT_TIMEOUT_S = 30.0


class UcxTicket(Ticket):
    def __init__(self, request: Any, endpoint: Any, span: Bytes, what: str) -> None:
        self._request = request
        self._endpoint = endpoint  # a receive belongs to no endpoint: only this one knows that its peer died
        self._span = span  # UCX reads or writes it until the request is complete
        self._what = what

    def done(self) -> bool:
        try:
            if not self._request.completed:
                self._endpoint.raise_on_error()
                return False
            self._request.check_error()
        except Exception as error:
            raise TransportError(f"{self._what} failed: {type(error).__name__}: {error}; did that rank die?") from error
        return True


class UcxTransport(Transport):
    name: ClassVar[str] = "ucx"
    capabilities: ClassVar[Capabilities] = Capabilities(cross_process=True, cross_node=True, peer_errors=True)

    def __init__(self, rank: int, settings: Mapping[str, str], peer_errors: bool = True) -> None:
        """``settings``: UCX options without their UCX_ prefix. Raises TransportError where UCX refuses them."""
        super().__init__()
        self._rank = rank
        self._api = _load()
        self._peer_errors = peer_errors
        api = self._api
        try:
            self._context = api.UCXContext(dict(settings), feature_flags=(api.Feature.TAG,))
        except Exception as error:
            raise TransportError(f"UCX does not start with {dict(settings)}: {error}") from error
        self._worker = api.UCXWorker(self._context)
        self._endpoints: dict[int, Any] = {}

    def register(self, buffer: Bytes) -> None:
        self._buffer = buffer

    def address(self) -> bytes:
        return bytes(self._worker.address)

    def connect(self, addresses: Mapping[int, bytes]) -> None:
        api = self._api
        for peer, address in addresses.items():
            try:
                self._endpoints[peer] = api.UCXEndpoint.create_from_worker_address(
                    self._worker, api.UCXAddress.create_from_buffer(address), self._peer_errors
                )
            except Exception as error:
                raise TransportError(
                    f"UCX finds no way to rank {peer}: {error}; do fabric.tls and fabric.net_devices name something "
                    "that both nodes have?"
                ) from error
        self._warm()

    def send(self, peer: int, span: Span, tag: int) -> Ticket:
        self.sent_bytes += span.nbytes
        view = self._view(span)
        return self._send(peer, view, tag, f"sending {span.nbytes} bytes to rank {peer}")

    def recv(self, peer: int, span: Span, tag: int) -> Ticket:
        self.received_bytes += span.nbytes
        view = self._view(span)
        return self._recv(peer, view, tag, f"receiving {span.nbytes} bytes from rank {peer}")

    def progress(self) -> bool:
        """Up to a few UCX progress rounds, until nothing more moves."""
        moved = False
        for _ in range(16):
            if not self._worker.progress_once():
                break
            moved = True
        return moved

    def route(self, peer: int) -> str:
        """Every ``transport/device`` that the endpoint's lanes use, such as ``tcp/eth0`` or ``posix/memory+cma/memory``."""
        return _query_lanes(int(self._endpoints[peer].handle))

    def close(self) -> None:
        self._endpoints.clear()

    def _send(self, peer: int, view: Bytes, tag: int, what: str) -> UcxTicket:
        api = self._api
        full = api.UCXXTag(self._rank << RANK_SHIFT | tag)
        try:
            endpoint = self._endpoints[peer]
            return UcxTicket(endpoint.tag_send(api.Array(view), full), endpoint, view, what)
        except Exception as error:
            raise TransportError(f"{what} failed at once: {error}") from error

    def _recv(self, peer: int, view: Bytes, tag: int, what: str) -> UcxTicket:
        api = self._api
        full = api.UCXXTag(peer << RANK_SHIFT | tag)
        endpoint = self._endpoints[peer]
        return UcxTicket(endpoint.tag_recv(api.Array(view), full, api.UCXXTagMaskFull), endpoint, view, what)

    def _warm(self) -> None:
        """Exchange a small and a large message with every peer: wire-up and rendezvous are done before any stamp."""
        for size in (8, 1 << 20):
            tickets = []
            for peer in self._endpoints:
                out, back = np.zeros(size, np.uint8), np.empty(size, np.uint8)
                what = f"the first message between this rank and rank {peer}"
                tickets += [self._recv(peer, back, WARM_TAG, what), self._send(peer, out, WARM_TAG, what)]
            deadline = time.monotonic() + CONNECT_TIMEOUT_S
            while not all(ticket.done() for ticket in tickets):
                self._worker.progress_once()
                if time.monotonic() > deadline:
                    raise TransportError(
                        f"no first message with ranks {sorted(self._endpoints)} within {CONNECT_TIMEOUT_S:.0f} s; "
                        "is a firewall between the nodes, or the wrong fabric.net_devices?"
                    )

    def _view(self, span: Span) -> Bytes:
        return self._buffer[span.offset : span.offset + span.nbytes]


class _Api:
    """The names that this file needs, from the binding that is here."""

    def __init__(self, lib: Any, array: Any) -> None:
        self.Array = array
        for name in ("UCXContext", "UCXWorker", "UCXEndpoint", "UCXAddress", "UCXXTag", "UCXXTagMaskFull", "Feature"):
            setattr(self, name, getattr(lib, name))

    def __getattr__(self, name: str) -> Any:  # set in __init__; tells the type checker that any name may exist
        raise AttributeError(name)


def _load() -> Any:
    """Import the binding. Raises TransportError with the remedy where there is none."""
    try:
        import ucxx._lib.libucxx as lib
        from ucxx._lib.arr import Array
    except ImportError as error:
        raise TransportError(
            f"transport.name=ucx: no UCX binding here ({error}); pip install 'xpyd[embedded]' brings ucxx, or choose "
            "transport=mpi"
        ) from error
    return _Api(lib, Array)


class _Entry(ctypes.Structure):
    _fields_ = (("transport", ctypes.c_char_p), ("device", ctypes.c_char_p))


class _EpAttr(ctypes.Structure):
    """``ucp_ep_attr_t`` of UCX 1.12 and later (ucp/api/ucp.h)."""

    _fields_ = (
        ("field_mask", ctypes.c_uint64),
        ("name", ctypes.c_char * 32),
        ("local_sockaddr", ctypes.c_char * 128),
        ("remote_sockaddr", ctypes.c_char * 128),
        ("entries", ctypes.POINTER(_Entry)),
        ("num_entries", ctypes.c_uint),
        ("entry_size", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p),
    )


FIELD_TRANSPORTS = 1 << 3
MAX_LANES = 16


def _query_lanes(endpoint: int) -> str:
    """Ask UCX which transports and devices an endpoint's lanes use; "unknown" where this UCX cannot say."""
    library = _loaded_libucp()
    if library is None:
        return "unknown"
    entries = (_Entry * MAX_LANES)()
    attributes = _EpAttr(field_mask=FIELD_TRANSPORTS, num_entries=MAX_LANES, entry_size=ctypes.sizeof(_Entry))
    attributes.entries = ctypes.cast(entries, ctypes.POINTER(_Entry))
    if library.ucp_ep_query(ctypes.c_void_p(endpoint), ctypes.byref(attributes)) != 0:
        return "unknown"
    lanes = [(e.transport.decode(), e.device.decode()) for e in entries[: attributes.num_entries]]
    return "+".join(dict.fromkeys(f"{transport}/{device}" for transport, device in lanes)) or "unknown"


def _loaded_libucp() -> Any:
    """The libucp that this process has loaded already, which is the one the endpoint belongs to."""
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "libucp" in line and ".so" in line}
    named = sorted(path for path in paths if os.path.basename(path).startswith("libucp"))
    return ctypes.CDLL(named[0]) if named else None
