"""KV by nixl's one-sided reads and writes over its UCX backend: the field's own yardstick beside transport=ucx.

Agent metadata travel in ``address()``, so there is no metadata server. One descriptor for each unit of the pool is
prepared when ranks connect; a transfer of whole units names indices, and nixl merges neighbours. No progress thread: on
few cores it takes more than it gives.
"""

from __future__ import annotations

import logging
import os
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import Span
from xpyd.transport.base import Bytes, Capabilities, Ticket, Transport, TransportError, Verb
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.nixl_ucx import UcxLog, check_options, complaints_in, environment, loading, route_in

HEADER = struct.Struct("<QQQ")  # begin, bytes and unit of the registered buffer; the agent's metadata follow
LOCAL = ""  # nixl's word for the agent's own side of a prepared list
WARM = b"warm"
WARM_BYTES = (8, 1 << 20)


@dataclass
class Side:
    """A registered buffer, here or at a peer: where it begins, and its prepared descriptors of ``unit_bytes`` each."""

    agent: str
    begin: int
    nbytes: int
    unit_bytes: int
    units: Any = None  # nixl's handle

    def prepare(self, agent: Any) -> None:
        if self.unit_bytes:
            strided = [self.begin, self.unit_bytes, 0, self.unit_bytes, self.nbytes // self.unit_bytes]
            self.units = agent.prep_xfer_dlist(self.agent, np.array([strided], np.uint64), "DRAM")

    def descriptors(self, spans: Sequence[Span]) -> NDArray[np.uint64]:
        """Rows of (address, bytes, device) for spans that are no whole units."""
        table = np.zeros((len(spans), 3), np.uint64)
        table[:, :2] = spans
        table[:, 0] += np.uint64(self.begin)
        return table


class NixlTicket(Ticket):
    """One posted batch."""

    def __init__(
        self, agent: Any, handle: Any, state: str, transport: Transport, peer: int, nbytes: int, verb: Verb
    ) -> None:
        super().__init__(transport, peer, nbytes, verb)
        self._agent = agent
        self._handle = handle
        self._state = state

    def _poll(self) -> bool:
        """Asking nixl for the state also makes it move."""
        if self._state == "PROC":
            self._state = self._agent.check_xfer_state(self._handle)
        if self._state == "ERR":
            raise ConnectionError("nixl gives no reason")
        if self._state == "DONE":
            self._handle.release()
        return self._state == "DONE"


class NixlTransport(Transport):
    name: ClassVar[str] = "nixl"
    capabilities: ClassVar[Capabilities] = Capabilities(
        two_sided=False,
        one_sided_read=True,
        one_sided_write=True,
        cross_process=True,
        cross_node=True,
        peer_errors=True,
        takes_fabric=True,
    )

    def __init__(self, rank: int, settings: Mapping[str, str], peer_errors: bool = True) -> None:
        """``settings``: UCX options without their UCX_ prefix. Raises TransportError where nixl's UCX refuses them."""
        super().__init__()
        self._log = UcxLog()
        self._name = f"rank{rank}"
        with loading():
            api = _installed()
            config = api.nixl_agent_config(enable_prog_thread=False, backends=[])
            self._agent: Any = api.nixl_agent(self._name, config)
            self._agent.get_plugin_params("UCX")
        check_options(settings)
        mode = {"ucx_error_handling_mode": "peer" if peer_errors else "none"}
        reason: Exception | None = None
        with environment({f"UCX_{name}": value for name, value in settings.items()}):
            try:
                self._agent.create_backend("UCX", mode)
            except Exception as error:
                reason = error
        complaints = complaints_in(self._log.text())
        if reason is not None or any("is not available" in complaint for complaint in complaints):
            raise TransportError(
                f"nixl's UCX does not start with {dict(settings)}: {'; '.join(complaints) or reason} (fabric.tls, "
                "fabric.net_devices, fabric.ucx, transport.peer_errors)"
            ) from reason
        self._scratch = np.zeros(max(WARM_BYTES), np.uint8)  # where warm-up reads land
        self._registered = [self._enter(self._scratch)]
        self._here = Side(LOCAL, self._scratch.ctypes.data, 0, 0)
        self._peers: dict[int, Side] = {}
        self._heard: dict[str, list[bytes]] = {}

    @classmethod
    def build(cls, fabric: FabricConfig, peer_errors: bool, comm: Any) -> NixlTransport:
        fabric.check_devices()
        return cls(comm.rank, fabric.settings(), peer_errors)

    def register(self, buffer: Bytes, unit_bytes: int = 0) -> None:
        super().register(buffer, unit_bytes)
        self._registered.append(self._enter(buffer))
        self._here = Side(LOCAL, buffer.ctypes.data, buffer.nbytes, unit_bytes)
        self._here.prepare(self._agent)

    def address(self) -> bytes:
        here = self._here
        return HEADER.pack(here.begin, here.nbytes, here.unit_bytes) + bytes(self._agent.get_agent_metadata())

    def connect(self, addresses: Mapping[int, bytes]) -> None:
        """Read from every peer, then tell each: a peer that has heard it may stop serving reads for the while."""
        deadline = time.monotonic() + self.connect_timeout_s
        for peer, address in addresses.items():
            self._peers[peer] = self._meet(peer, address)
        counted = self.received_bytes
        for peer in addresses:
            for nbytes in WARM_BYTES:
                ticket = self._read_warm(peer, min(nbytes, self._peers[peer].nbytes))
                while not ticket.done():
                    self._wait(deadline, addresses)
        self.received_bytes = counted
        for peer in addresses:
            self._agent.send_notif(self._peers[peer].agent, WARM)
        for peer in addresses:
            while not self._heard.pop(self._peers[peer].agent, []):
                self._wait(deadline, addresses)

    def read(self, peer: int, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        return self._post(peer, "READ", destination, source, Verb.READ)

    def write(self, peer: int, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        return self._post(peer, "WRITE", source, destination, Verb.WRITE)

    def progress(self) -> bool:
        """Asking for notifications makes nixl's UCX move, and serve what peers read; whether it did is not told."""
        for agent, messages in self._agent.get_new_notifs().items():
            self._heard.setdefault(_text(agent), []).extend(messages)
        return False

    def route(self, peer: int) -> str:
        """Every ``transport/device`` in use, such as ``tcp/eth0``; "unknown" where peers differ (see route_in)."""
        return route_in(self._log.text(), self._name)

    def close(self) -> None:
        if self._agent is None:
            return
        for side in (self._here, *self._peers.values()):
            if side.units is not None:
                side.units.release()
        for side in self._peers.values():
            self._agent.remove_remote_agent(side.agent)
        for registered in self._registered:
            self._agent.deregister_memory(registered)
        self._peers.clear()
        self._agent = None
        for complaint in complaints_in(self._log.text()):
            print(f"nixl's UCX: {complaint}", file=sys.stderr)

    def _enter(self, buffer: Bytes) -> Any:
        try:
            return self._agent.register_memory([(buffer.ctypes.data, buffer.nbytes, 0, "")], "DRAM")
        except Exception as error:
            raise TransportError(
                f"nixl cannot register {buffer.nbytes} bytes: {'; '.join(complaints_in(self._log.text())) or error}; "
                "is the limit on locked memory too low (ulimit -l)?"
            ) from error

    def _meet(self, peer: int, address: bytes) -> Side:
        begin, nbytes, unit_bytes = HEADER.unpack_from(address)
        try:
            agent = _text(self._agent.add_remote_agent(address[HEADER.size :]))
            self._agent.make_connection(agent)
        except Exception as error:
            raise TransportError(
                f"nixl finds no way to rank {peer}: {error}; do fabric.tls and fabric.net_devices name something that "
                "both nodes have, and have both the same nixl?"
            ) from error
        side = Side(agent, begin, nbytes, unit_bytes)
        side.prepare(self._agent)
        return side

    def _read_warm(self, peer: int, nbytes: int) -> Ticket:
        landing = Side(LOCAL, self._scratch.ctypes.data, self._scratch.nbytes, 0)
        handle = self._handle(self._peers[peer], "READ", landing, [Span(0, nbytes)], [Span(0, nbytes)])
        return NixlTicket(self._agent, handle, self._agent.transfer(handle), self, peer, nbytes, Verb.READ)

    def _wait(self, deadline: float, addresses: Mapping[int, bytes]) -> None:
        self.progress()
        if time.monotonic() > deadline:
            raise TransportError(
                f"no first read from ranks {sorted(addresses)} within {self.connect_timeout_s:.0f} s; is a firewall "
                "between the nodes, or the wrong fabric.net_devices?"
            )

    def _post(self, peer: int, operation: str, here: Sequence[Span], there: Sequence[Span], verb: Verb) -> Ticket:
        nbytes = sum(span.nbytes for span in here)
        assert [span.nbytes for span in here] == [span.nbytes for span in there], "both ends plan the same pieces"
        try:
            handle = self._handle(self._peers[peer], operation, self._here, here, there)
            state = self._agent.transfer(handle)
        except Exception as error:  # from a peer already known to be dead
            raise TransportError(
                f"{verb.format(nbytes)} rank {peer} failed at once: {type(error).__name__}: {error}; did that rank die?"
            ) from error
        return NixlTicket(self._agent, handle, state, self, peer, nbytes, verb)

    def _handle(self, remote: Side, operation: str, local: Side, here: Sequence[Span], there: Sequence[Span]) -> Any:
        """A transfer of prepared units where both sides have the same and all spans are made of them."""
        if local.units is not None and local.unit_bytes == remote.unit_bytes:
            mine, theirs = units_of(here, local.unit_bytes), units_of(there, local.unit_bytes)
            if mine is not None and theirs is not None:
                return self._agent.make_prepped_xfer(operation, local.units, mine, remote.units, theirs)
        lists = [
            self._agent.get_xfer_descs(side.descriptors(spans), "DRAM")
            for side, spans in ((local, here), (remote, there))
        ]
        return self._agent.initialize_xfer(operation, *lists, remote.agent)


def units_of(spans: Sequence[Span], unit_bytes: int) -> NDArray[np.int32] | None:
    """The numbers of the units that ``spans`` are made of, in order; None where one begins or ends inside a unit."""
    table = np.array(spans, np.int64).reshape(-1, 2)
    units, rest = np.divmod(table, unit_bytes)
    if rest.any():
        return None
    first, count = units[:, 0], units[:, 1]
    before = np.cumsum(count) - count  # units of the spans before
    return (np.repeat(first - before, count) + np.arange(count.sum())).astype(np.int32)


def _text(agent: str | bytes) -> str:
    return agent.decode() if isinstance(agent, bytes) else agent


def _installed() -> Any:
    """nixl's Python API. Raises TransportError with the remedy where there is none."""
    reasons = []
    for package in ("nixl_cu12", "nixl"):  # the wheel; a site's own build
        try:
            api = import_module(f"{package}._api")
        except (ImportError, OSError) as error:
            reasons.append(f"{package}: {error}")
            continue
        if "NIXL_LOG_LEVEL" not in os.environ:
            logging.getLogger("nixl").setLevel(logging.WARNING)
        return api
    raise TransportError(
        f"transport.name=nixl: no nixl here ({'; '.join(reasons)}); pip install 'xpyd[nixl]' brings it, or choose "
        "transport=ucx"
    )
