"""Two sources hand scattered KV blocks to one destination pool, layer by layer; checksums and three counts must agree.

Usage: hand_off.py TRANSPORT. Three ranks: 2 takes from 0 and 1 at once, from pools of different block order: by
messages, or where the transport is one-sided by reads of layers that it is told are final. Then one byte, two blocks
and one layer of what arrived are damaged in turn, and the checksums must say where.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.checksum import checksums, mismatches
from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import plan_request
from xpyd.mpi import MPI
from xpyd.transport.base import Transport
from xpyd.transport.counters import interface_bytes
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.flow import ReadFlow, RecvFlow, SendFlow
from xpyd.transport.registry import TransportConfig

LAYOUT = PoolLayout(num_layers=4, num_blocks=12, block_bytes=24_000)
SOURCE_TABLES = ([7, 2, 3, 4, 11], [0, 9, 8, 1])
DESTINATION_TABLES = ([0, 1, 2, 3, 6], [11, 4, 5, 10])
MAX_PIECE_BYTES = 40_000
RECEIVER = 2
BOUND_S = 40
READY_TAG, LANDED_TAG, CHECKSUM_TAG = 1, 2, 3
HELD_TO_LOOPBACK = ("ucx", "nixl")


def send(transport: Transport, comm: Any, pool: NDArray[np.uint8]) -> None:
    """Give this rank's blocks; a layer is released only when it is filled, as in a layerwise hand-off."""
    table = SOURCE_TABLES[comm.rank]
    plan = plan_request(LAYOUT, table, DESTINATION_TABLES[comm.rank], MAX_PIECE_BYTES)
    two_sided = transport.capabilities.two_sided
    flow = SendFlow(
        transport, RECEIVER, plan.source if two_sided else [], transfer_seq=0, window=3, part_ends=plan.part_ends
    )
    generator = np.random.default_rng(comm.rank)
    for layer, end in enumerate(plan.part_ends):
        first = layer * LAYOUT.layer_bytes
        pool[first : first + LAYOUT.layer_bytes] = generator.integers(0, 256, LAYOUT.layer_bytes, dtype=np.uint8)
        flow.release(end)
        flow.advance()
        comm.send(end, dest=RECEIVER, tag=READY_TAG)
        transport.progress()
    deadline = time.monotonic() + BOUND_S
    while not (flow.done and comm.iprobe(source=RECEIVER, tag=LANDED_TAG)):
        transport.progress()
        flow.advance()
        assert time.monotonic() < deadline, "sending does not end"
    comm.recv(source=RECEIVER, tag=LANDED_TAG)
    planned = sum(span.nbytes for span in plan.source)
    assert planned == len(table) * LAYOUT.num_layers * LAYOUT.block_bytes
    assert transport.sent_bytes == (planned if two_sided else 0)
    comm.send(checksums(pool, LAYOUT, table), dest=RECEIVER, tag=CHECKSUM_TAG)


def receive(transport: Transport, comm: Any, pool: NDArray[np.uint8]) -> None:
    before = interface_bytes()
    plans = [
        plan_request(LAYOUT, source, destination, MAX_PIECE_BYTES)
        for source, destination in zip(SOURCE_TABLES, DESTINATION_TABLES, strict=True)
    ]
    flows: list[RecvFlow | ReadFlow] = [
        RecvFlow(transport, peer, plan.destination, transfer_seq=0, part_ends=plan.part_ends)
        if transport.capabilities.two_sided
        else ReadFlow(transport, peer, plan.source, plan.destination, window=3)
        for peer, plan in enumerate(plans)
    ]
    assert transport.received_bytes == 0, "nothing has landed yet"
    deadline = time.monotonic() + BOUND_S
    while not all(flow.done for flow in flows):
        for peer, flow in enumerate(flows):
            if comm.iprobe(source=peer, tag=READY_TAG):
                end = comm.recv(source=peer, tag=READY_TAG)
                if isinstance(flow, ReadFlow):
                    flow.release(end)
            flow.advance()
        transport.progress()
        assert time.monotonic() < deadline, "the blocks do not arrive"
    planned = sum(span.nbytes for plan in plans for span in plan.destination)
    assert transport.received_bytes == planned
    for peer in range(len(plans)):
        comm.send(None, dest=peer, tag=LANDED_TAG)
    if transport.name in HELD_TO_LOOPBACK:
        assert transport.route(0) == "tcp/lo"
        assert interface_bytes()["lo"] - before["lo"] >= planned, "the interface saw less than the ledger"
        print("interface agrees")
    for peer, table in enumerate(DESTINATION_TABLES):
        expected = comm.recv(source=peer, tag=CHECKSUM_TAG)
        assert mismatches(expected, checksums(pool, LAYOUT, table)) == []
        check_planted_faults(pool, table, expected)
    untouched = sorted({*range(LAYOUT.num_blocks)} - {block for table in DESTINATION_TABLES for block in table})
    for layer in range(LAYOUT.num_layers):
        for block in untouched:
            assert not view(pool, layer, block).any(), "a block of another request was written"
    print("pool verified")


def view(pool: NDArray[np.uint8], layer: int, block: int) -> NDArray[np.uint8]:
    begin = LAYOUT.offset(layer, block)
    return pool[begin : begin + LAYOUT.block_bytes]


def check_planted_faults(pool: NDArray[np.uint8], table: list[int], expected: NDArray[np.uint32]) -> None:
    damaged = pool.copy()
    view(damaged, 3, table[1])[-1] ^= 1
    assert mismatches(expected, checksums(damaged, LAYOUT, table)) == [(3, 1)]
    damaged = pool.copy()
    view(damaged, 0, table[0])[:], view(damaged, 0, table[2])[:] = view(pool, 0, table[2]), view(pool, 0, table[0])
    assert mismatches(expected, checksums(damaged, LAYOUT, table)) == [(0, 0), (0, 2)]
    damaged = pool.copy()
    damaged[2 * LAYOUT.layer_bytes : 3 * LAYOUT.layer_bytes] = 0
    assert mismatches(expected, checksums(damaged, LAYOUT, table)) == [(2, i) for i in range(len(table))]


def main() -> None:
    comm = MPI.COMM_WORLD
    loopback = {"tls": ("tcp",), "net_devices": ("lo",), "strict": True} if sys.argv[1] in HELD_TO_LOOPBACK else {}
    fabric = FabricConfig("test", 10.0, message_bytes=100_000, **loopback)  # type: ignore[arg-type]
    transport = TransportConfig(sys.argv[1]).build(fabric, comm)  # type: ignore[arg-type]
    pool = np.zeros(LAYOUT.nbytes, np.uint8)
    transport.register(pool, LAYOUT.block_bytes)
    addresses = comm.allgather(transport.address())
    peers = (0, 1) if comm.rank == RECEIVER else (RECEIVER,)
    transport.connect({peer: addresses[peer] for peer in peers})
    if comm.rank == RECEIVER:
        receive(transport, comm, pool)
    else:
        send(transport, comm, pool)
    comm.Barrier()
    transport.close()
    transport.close()


if __name__ == "__main__":
    main()
