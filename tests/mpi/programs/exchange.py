"""Every rank sends to every other at once: sizes from 1 byte to 8 MiB, late receives, several in flight; all verified.

Usage: exchange.py TRANSPORT [UCX_TLS]
"""

from __future__ import annotations

import sys
import time

import numpy as np

from xpyd.kv.layout import Span
from xpyd.mpi import MPI
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.flow import RecvFlow, SendFlow
from xpyd.transport.registry import TransportConfig

SIZES = (1, 7, 4096, 65_537, 1 << 20, 8 << 20)


def content(source: int, destination: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng((source, destination)).integers(0, 256, nbytes, dtype=np.uint8)


def main() -> None:
    comm = MPI.COMM_WORLD
    fabric = FabricConfig("test", 10.0, tls=tuple(sys.argv[2:3]))
    transport = TransportConfig(sys.argv[1]).build(fabric, comm)  # type: ignore[arg-type]
    area = sum(SIZES)
    buffer = np.zeros(2 * comm.size * area, np.uint8)  # an outgoing and an incoming area for each peer
    transport.register(buffer)
    addresses = comm.allgather(transport.address())
    peers = [rank for rank in range(comm.size) if rank != comm.rank]
    transport.connect({peer: addresses[peer] for peer in peers})

    def spans(begin: int) -> list[Span]:
        ends = np.cumsum(SIZES)
        return [Span(begin + int(end) - size, size) for end, size in zip(ends, SIZES, strict=True)]

    sends, recvs = [], []
    for peer in peers:
        begin = peer * area
        buffer[begin : begin + area] = content(comm.rank, peer, area)
        sends.append(SendFlow(transport, peer, spans(begin), 3, window=4))
        sends[-1].release(len(SIZES))
        sends[-1].advance()
    transport.progress()  # some messages arrive before their receive is posted
    comm.Barrier()
    for peer in peers:
        recvs.append(RecvFlow(transport, peer, spans((comm.size + peer) * area), 3))
    deadline = time.monotonic() + 40
    while not all(flow.done for flow in (*sends, *recvs)):
        transport.progress()
        for flow in (*sends, *recvs):
            flow.advance()
        assert time.monotonic() < deadline, "transfers do not end"
    for peer in peers:
        begin = (comm.size + peer) * area
        assert (buffer[begin : begin + area] == content(peer, comm.rank, area)).all(), f"bytes from {peer} differ"
    assert transport.sent_bytes == transport.received_bytes == area * len(peers)
    print(f"all spans verified, route {transport.route(peers[0])}", flush=True)
    comm.Barrier()
    transport.close()


if __name__ == "__main__":
    main()
