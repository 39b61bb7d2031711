"""Two ranks give each other pieces over the `ucx` transport on fabric=ib; checksums, route and three counts are told.

Usage: exchange.py [KEY=VALUE...], values in YAML, over conf/fabric/ib.yaml: `tls=[ud]`, `net_devices=[rxe0:1]`. Rank n
uses port rxe<n>:1, so that all bytes cross the wire between the two. Rank 0 prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from xpyd.kv.checksum import checksums, mismatches
from xpyd.kv.layout import PoolLayout, Span
from xpyd.mpi import MPI
from xpyd.transport.counters import interface_bytes
from xpyd.transport.fabric import FabricConfig, locked_memory_limit
from xpyd.transport.registry import TransportConfig

ROOT = Path(__file__).parents[3]
LAYOUT = PoolLayout(num_layers=2, num_blocks=16, block_bytes=32_768)
BOUND_S = 60
TABLE = range(LAYOUT.num_blocks)


def main(overrides: list[str]) -> None:
    fabric = FabricConfig(**yaml.safe_load((ROOT / "conf/fabric/ib.yaml").read_text()) | parsed(overrides))
    rank = MPI.COMM_WORLD.rank
    if not fabric.net_devices:
        os.environ["UCX_NET_DEVICES"] = f"rxe{rank}:1"  # as launch/rank.sh does
    comm = MPI.COMM_WORLD
    peer = 1 - rank
    half = LAYOUT.nbytes
    pool = np.zeros(2 * half, np.uint8)
    fabric.check_locked_memory(pool.nbytes, locked_memory_limit())
    transport = TransportConfig("ucx").build(fabric, comm)
    pool[:half] = np.random.default_rng(rank).integers(0, 256, half, dtype=np.uint8)
    transport.register(pool)
    addresses = comm.allgather(transport.address())
    transport.connect({peer: addresses[peer]})
    route = transport.route(peer)
    fabric.check_route(route)
    comm.barrier()
    before = interface_bytes()[f"rxe{rank}:1"]
    spans = [Span(offset, LAYOUT.block_bytes) for offset in range(0, half, LAYOUT.block_bytes)]
    comm.barrier()
    tickets = [transport.recv(peer, [Span(half + span.offset, span.nbytes)], tag) for tag, span in enumerate(spans)] + [
        transport.send(peer, [span], tag) for tag, span in enumerate(spans)
    ]
    deadline = time.monotonic() + BOUND_S
    while not all(ticket.done() for ticket in tickets):
        transport.progress()
        assert time.monotonic() < deadline, f"the exchange did not end within {BOUND_S} s"
    ended = comm.Ibarrier()
    while not ended.Test():  # the peer may still need our progress
        transport.progress()
    expected = comm.sendrecv(checksums(pool[:half], LAYOUT, TABLE), peer, source=peer)
    found = {
        "route": route,
        "software": transport.software(),
        "ledger_bytes": half,
        "transport_bytes": transport.received_bytes,
        "port_bytes": interface_bytes()[f"rxe{rank}:1"] - before,
        "mismatches": mismatches(expected, checksums(pool[half:], LAYOUT, TABLE)),
    }
    told = comm.gather(found)
    if rank == 0:
        print(json.dumps(told), flush=True)
    transport.close()


def parsed(overrides: list[str]) -> dict[str, object]:
    pairs = [override.partition("=") for override in overrides]
    return {key: yaml.safe_load(value) for key, _, value in pairs}


if __name__ == "__main__":
    main(sys.argv[1:])
