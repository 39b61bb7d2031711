"""Every rank moves bytes to every other at once: 1 byte to 8 MiB, late receives, several in flight; all verified.

Usage: exchange.py TRANSPORTS WAYS [UCX_TLS]. A way is two_sided, one_sided_read or one_sided_write; several transports
(``ucx,nixl two_sided,one_sided_read``) live in the same processes, one after the other.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from xpyd.kv.layout import Span
from xpyd.mpi import MPI
from xpyd.transport.base import Transport
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.flow import OneSidedFlow, ReadFlow, RecvFlow, SendFlow, WriteFlow
from xpyd.transport.registry import TransportConfig

SIZES = (1, 7, 4096, 65_537, 1 << 20, 8 << 20)
AREA = sum(SIZES)
BOUND_S = 40


def content(source: int, destination: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng((source, destination)).integers(0, 256, nbytes, dtype=np.uint8)


def outgoing(destination: int) -> list[Span]:
    """Where a rank keeps what is for ``destination``."""
    return spans(destination * AREA)


def incoming(comm: Any, source: int) -> list[Span]:
    """Where a rank wants what comes from ``source``."""
    return spans((comm.size + source) * AREA)


def spans(begin: int) -> list[Span]:
    return [Span(begin + int(end) - size, size) for end, size in zip(np.cumsum(SIZES), SIZES, strict=True)]


def messages(transport: Transport, comm: Any, peers: list[int]) -> list[SendFlow | RecvFlow]:
    sends = [SendFlow(transport, peer, outgoing(peer), 3, window=4) for peer in peers]
    for flow in sends:
        flow.release(len(SIZES))
        flow.advance()
    transport.progress()  # some messages arrive before their receive is posted
    comm.Barrier()
    return [*sends, *(RecvFlow(transport, peer, incoming(comm, peer), 3) for peer in peers)]


def copies(transport: Transport, comm: Any, peers: list[int], way: str) -> list[OneSidedFlow]:
    flows: list[OneSidedFlow] = []
    for peer in peers:
        if way == "one_sided_read":
            flows.append(ReadFlow(transport, peer, outgoing(comm.rank), incoming(comm, peer), window=4))
        else:
            flows.append(WriteFlow(transport, peer, outgoing(peer), incoming(comm, comm.rank), window=4))
        flows[-1].release(len(SIZES))
    comm.Barrier()  # every outgoing area is filled
    return flows


def exchange(transport: Transport, comm: Any, way: str) -> None:
    """Fill, connect, move and check."""
    buffer = np.zeros(2 * comm.size * AREA, np.uint8)  # an outgoing and an incoming area for each peer
    transport.register(buffer)
    addresses = comm.allgather(transport.address())
    peers = [rank for rank in range(comm.size) if rank != comm.rank]
    for peer in peers:
        buffer[peer * AREA : (peer + 1) * AREA] = content(comm.rank, peer, AREA)
    transport.connect({peer: addresses[peer] for peer in peers})
    assert transport.received_bytes == transport.written_bytes == 0, "connecting is no transfer"
    flows = messages(transport, comm, peers) if way == "two_sided" else copies(transport, comm, peers, way)
    deadline = time.monotonic() + BOUND_S
    everyone = None  # a peer's one-sided copies need our progress too
    while everyone is None or not everyone.Test():
        transport.progress()
        for flow in flows:
            flow.advance()
        if everyone is None and all(flow.done for flow in flows):
            everyone = comm.Ibarrier()
        assert time.monotonic() < deadline, "transfers do not end"
    for peer in peers:
        begin = (comm.size + peer) * AREA
        assert (buffer[begin : begin + AREA] == content(peer, comm.rank, AREA)).all(), f"bytes from {peer} differ"
    total = AREA * len(peers)
    counts = (transport.sent_bytes, transport.received_bytes, transport.written_bytes)
    expected = {"two_sided": (total, total, 0), "one_sided_read": (0, total, 0), "one_sided_write": (0, 0, total)}
    assert counts == expected[way], counts
    print(f"all spans verified, route {transport.route(peers[0])}", flush=True)


def main() -> None:
    comm = MPI.COMM_WORLD
    names, ways, *tls = sys.argv[1:]
    fabric = FabricConfig("test", 10.0, tls=tuple(tls))
    transports = [TransportConfig(name).build(fabric, comm) for name in names.split(",")]
    for transport, way in zip(transports, ways.split(","), strict=True):
        exchange(transport, comm, way)
    comm.Barrier()
    for transport in transports:
        transport.close()
        transport.close()


if __name__ == "__main__":
    main()
