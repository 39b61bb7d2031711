"""Several settings of one transport side by side between two ranks: the measuring half of the ``tune`` experiment.

UCX reads its options when a context is made, so every contender is a transport of its own; all are open at once and
take turns, so that a slow second of the machine or the network falls on all of them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import Plan, plan_request
from xpyd.records import TuneRow
from xpyd.transport.base import Bytes, Transport, TransportError
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.search import Settings, TuneSearch
from xpyd.worker.wire import receive_once, send_once

Timed = dict[str, list[list[float]]]  # contender -> repeat -> seconds of each pattern


@dataclass(frozen=True)
class Heat:
    """One round of the search: an axis with its contenders, first the one that the others are held against."""

    number: int
    axis: str
    contenders: Mapping[str, Settings]
    num_repeats: int

    @property
    def reference(self) -> str:
        """What the others are held against: the first."""
        return next(iter(self.contenders))


class Contest:
    """One end of a pair; both ends call the same methods in the same order."""

    def __init__(
        self,
        config: TransportConfig,
        fabric: FabricConfig,
        search: TuneSearch,
        comm: Any,
        source: int,
        destination: int,
        buffer: Bytes,
        write: Callable[[TuneRow], None],
    ) -> None:
        self._config, self._fabric, self._search, self._comm = config, fabric, search, comm
        self._is_source = comm.rank == source
        self._peer = destination if self._is_source else source
        self._buffer, self._write = buffer, write
        self._plans = {size: _plan(search, size) for size in search.piece_bytes}
        self._seq = 0
        if self._is_source:
            buffer[:] = np.random.default_rng(source).integers(0, 256, buffer.size, dtype=np.uint8)
        self._checksum = zlib.crc32(buffer.data)

    def hold(self, heat: Heat) -> Timed:
        """Time every contender that UCX takes; at the source all times are 0. Raises TransportError.

        A contender that cannot run is left out, and its row says why; the reference must run.
        """
        opened = {name: self._open(heat, name, settings) for name, settings in heat.contenders.items()}
        able = {name: transport for name, transport in opened.items() if transport is not None}
        timed: Timed = {name: [] for name in able}
        generator = np.random.default_rng(heat.number)
        for name, transport in able.items():
            for size in self._plans:
                self._check(transport, size, name)
        for repeat in range(heat.num_repeats):
            turns = [(name, index) for name in able for index in range(len(self._plans))]
            seconds = {name: [0.0] * len(self._plans) for name in able}
            for turn in generator.permutation(len(turns)):
                name, index = turns[turn]
                size = self._search.piece_bytes[index]
                seconds[name][index] = self._move(able[name], size)
                self._record(heat, name, size, repeat, seconds[name][index])
            for name in able:
                timed[name].append(seconds[name])
        self._comm.sendrecv(None, dest=self._peer, source=self._peer)  # nobody closes under the other's last message
        for transport in able.values():
            transport.close()
        return timed

    def _open(self, heat: Heat, name: str, settings: Settings) -> Transport | None:
        """A connected transport with these settings; None, with a row, where either end cannot have it."""
        transport, reason = None, ""
        try:
            transport = self._config.build(replace(self._fabric, ucx=settings, ucx_without_ib={}), self._comm)
            transport.register(self._buffer, min(self._plans))
            address = transport.address()
        except (TransportError, ValueError) as error:
            address, reason = b"", str(error)
        theirs, their_reason = self._comm.sendrecv((address, reason), dest=self._peer, source=self._peer)
        reason = reason or their_reason
        if transport is not None and not reason:
            transport.connect({self._peer: theirs})
            self._fabric.check_route(transport.route(self._peer))
            return transport
        if name == heat.reference:
            raise TransportError(f"the settings to start from cannot run: {reason}")
        self._record(heat, name, 0, 0, 0.0, reason)
        return None

    def _move(self, transport: Transport, size: int) -> float:
        self._seq += 1
        window = self._search.window(size)
        if self._is_source:
            send_once(transport, self._comm, self._peer, self._plans[size], self._seq, window)
            return 0.0
        return receive_once(transport, self._comm, self._peer, self._plans[size], self._seq, window)

    def _check(self, transport: Transport, size: int, name: str) -> None:
        """Warm up, and compare what lands with what was sent. Raises TransportError."""
        plan = self._plans[size]
        if not self._is_source:
            self._buffer[:] = 0
        self._move(transport, size)
        found = 0
        for span in plan.source if self._is_source else plan.destination:
            found = zlib.crc32(self._buffer[span.offset : span.offset + span.nbytes].data, found)
        if self._comm.sendrecv(found, dest=self._peer, source=self._peer) != found:
            raise TransportError(f"{name}: bytes between ranks {self._comm.rank} and {self._peer} arrived changed")

    def _record(self, heat: Heat, name: str, size: int, repeat: int, seconds: float, refused: str = "") -> None:
        if self._is_source:
            return
        self._write(
            TuneRow(
                round=heat.number,
                axis=heat.axis,
                candidate=name,
                reference=name == heat.reference,
                settings=json.dumps(dict(heat.contenders[name]), sort_keys=True),
                src_rank=self._peer,
                dst_rank=self._comm.rank,
                transport=self._config.name,
                piece_bytes=size,
                payload_bytes=self._search.payload_bytes,
                repeat=repeat,
                seconds=seconds,
                refused=refused,
            )
        )


def _plan(search: TuneSearch, piece_bytes: int) -> Plan:
    """The payload in pieces that are not merged: in order, or scattered at both ends."""
    num_blocks = search.payload_bytes // piece_bytes
    source = destination = list(range(num_blocks))
    if piece_bytes < search.scatter_below_bytes:
        generator = np.random.default_rng(piece_bytes)
        source, destination = (generator.permutation(num_blocks).tolist() for _ in range(2))
    return plan_request(PoolLayout(1, num_blocks, piece_bytes), source, destination, piece_bytes)
