"""The bill alone: one timed hand-off of a KV pattern between two ranks, without a model around it.

As in the real hand-off the destination posts its receives, says "go", and the clock runs from there to the last byte.
Where the transport is one-sided it reads instead, and the source serves until it hears that all has landed.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import Plan, plan_request
from xpyd.records import TransferPointRow
from xpyd.transport.base import Transport, TransportError
from xpyd.transport.flow import ReadFlow, RecvFlow, SendFlow
from xpyd.units import NS_PER_S
from xpyd.worker.sweeps import WIRE_BLOCK_BYTES, WireSweep

GO_TAG, LANDED_TAG = 7003, 7004
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Pattern:
    """``payload_bytes`` as ``num_layers`` layers of equal size, contiguous in each layer."""

    payload_bytes: int
    num_layers: int
    pieces_in_flight: int
    held_out: bool

    def plan(self, max_piece_bytes: int) -> Plan:
        layer_bytes = self.payload_bytes // self.num_layers
        block_bytes = min(WIRE_BLOCK_BYTES, layer_bytes)
        table = list(range(layer_bytes // block_bytes))
        layout = PoolLayout(self.num_layers, len(table), block_bytes)
        return plan_request(layout, table, table, max_piece_bytes)


def patterns(sweep: WireSweep) -> list[Pattern]:
    """Every point of the sweep, in its order."""
    sizes = [(size, False) for size in sweep.payload_bytes] + [(size, True) for size in sweep.held_out_bytes]
    return [
        Pattern(size, layers, window, held_out)
        for size, held_out in sizes
        for layers in sweep.num_layers
        for window in sweep.pieces_in_flight
    ]


def send_once(transport: Transport, comm: Any, peer: int, plan: Plan, seq: int, window: int) -> None:
    """The source's side of one timed transfer."""
    send_together(transport, comm, peer, [plan], seq, window)


def receive_once(transport: Transport, comm: Any, peer: int, plan: Plan, seq: int, window: int) -> float:
    """The destination's side; returns the seconds from "go" to the last byte."""
    return receive_together(transport, comm, peer, [plan], seq, window)


def send_together(transport: Transport, comm: Any, peer: int, plans: Sequence[Plan], seq: int, window: int) -> None:
    """As ``send_once``, several transfers at once: ``seq`` and those behind it."""
    comm.recv(source=peer, tag=GO_TAG)
    if not transport.capabilities.two_sided:
        _serve(transport, comm, peer)
        return
    flows = []
    for i, plan in enumerate(plans):
        flow = SendFlow(transport, peer, plan.source, seq + i, window, plan.part_ends)
        flow.release(len(plan.source))
        flows.append(flow)
    _finish(transport, flows, f"sending to rank {peer}")


def receive_together(transport: Transport, comm: Any, peer: int, plans: Sequence[Plan], seq: int, window: int) -> float:
    """The destination's side; returns the seconds from "go" to the last byte of the last of them."""
    flows: list[RecvFlow | ReadFlow] = []
    for i, plan in enumerate(plans):
        if transport.capabilities.two_sided:
            flows.append(RecvFlow(transport, peer, plan.destination, seq + i, plan.part_ends))
            continue
        read = ReadFlow(transport, peer, plan.source, plan.destination, window)
        read.release(len(plan.source))
        flows.append(read)
    begin_ns = perf_counter_ns()
    comm.send(None, dest=peer, tag=GO_TAG)
    _finish(transport, flows, f"receiving from rank {peer}")
    seconds = (perf_counter_ns() - begin_ns) / NS_PER_S
    if not transport.capabilities.two_sided:
        comm.send(None, dest=peer, tag=LANDED_TAG)
    return seconds


def measure_pair(
    transport: Transport,
    comm: Any,
    source: int,
    destination: int,
    buffer: NDArray[np.uint8],
    sweep: WireSweep,
    write: Callable[[TransferPointRow], None],
) -> None:
    """Measure every pattern ``num_repeats`` times between two ranks, in a fresh order each repeat; both call this.

    The destination writes the rows. Its first receipt of each pattern is checked against the source's checksum.
    Raises TransportError where bytes differ or nothing arrives in time.
    """
    points = patterns(sweep)
    peer = destination if comm.rank == source else source
    if comm.rank == source:
        buffer[:] = np.random.default_rng(source).integers(0, 256, buffer.size, dtype=np.uint8)
    generator = np.random.default_rng(0)
    seq = 0
    for repeat in range(-1, sweep.num_repeats):  # -1: warm-up and check
        for which in generator.permutation(len(points)):
            point = points[which]
            plan = point.plan(sweep.max_piece_bytes)
            if comm.rank == source:
                if repeat < 0:
                    comm.send(zlib.crc32(buffer[: point.payload_bytes].data), dest=peer, tag=GO_TAG)
                send_once(transport, comm, peer, plan, seq, point.pieces_in_flight)
            else:
                _receive_point(transport, comm, peer, buffer, point, plan, seq, repeat, write)
            seq += 1


def _receive_point(
    transport: Transport,
    comm: Any,
    peer: int,
    buffer: NDArray[np.uint8],
    point: Pattern,
    plan: Plan,
    seq: int,
    repeat: int,
    write: Callable[[TransferPointRow], None],
) -> None:
    if repeat < 0:
        expected = comm.recv(source=peer, tag=GO_TAG)
        buffer[: point.payload_bytes] = 0
        receive_once(transport, comm, peer, plan, seq, point.pieces_in_flight)
        if zlib.crc32(buffer[: point.payload_bytes].data) != expected:
            raise TransportError(f"{point.payload_bytes} bytes from rank {peer} arrived changed: wrong checksum")
        return
    seconds = receive_once(transport, comm, peer, plan, seq, point.pieces_in_flight)
    write(
        TransferPointRow(
            src_rank=peer,
            dst_rank=comm.rank,
            transport=transport.name,
            payload_bytes=point.payload_bytes,
            num_layers=point.num_layers,
            num_pieces=len(plan.source),
            pieces_in_flight=point.pieces_in_flight,
            repeat=repeat,
            seconds=seconds,
            held_out=point.held_out,
        )
    )


def _serve(transport: Transport, comm: Any, peer: int) -> None:
    """Let ``peer`` read until it says that it has all."""
    deadline = time.monotonic() + TIMEOUT_S
    while not comm.iprobe(source=peer, tag=LANDED_TAG):
        transport.progress()
        if time.monotonic() > deadline:
            raise TransportError(f"rank {peer} has not read everything after {TIMEOUT_S:.0f} s")
    comm.recv(source=peer, tag=LANDED_TAG)


def _finish(transport: Transport, flows: Sequence[SendFlow | RecvFlow | ReadFlow], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while left := [flow for flow in flows if not flow.done]:
        transport.progress()
        for flow in left:
            flow.advance()
        if time.monotonic() > deadline:
            raise TransportError(f"{what} is not done after {TIMEOUT_S:.0f} s")
