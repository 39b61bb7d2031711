"""Rank 1 dies by SIGKILL in mid-transfer; rank 0 must notice through its transport, within a bound, and name the peer.

Usage: killed_peer.py ucx receiving|sending, or nixl reading|writing (what rank 0 does).
Without mpirun, which would end everything when it sees the death: rank 0 starts a plain process as its peer.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import sys
import time

import numpy as np

from xpyd.kv.layout import Span
from xpyd.transport.base import Transport, TransportError
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.flow import ReadFlow, RecvFlow, SendFlow, WriteFlow
from xpyd.transport.nixl import NixlTransport
from xpyd.transport.ucx import UcxTransport

NBYTES = 64 << 20
WHOLE = [Span(0, NBYTES)]
FABRIC = FabricConfig("test", 10.0, tls=("tcp",))


def start(name: str, rank: int) -> Transport:
    kind = {"ucx": UcxTransport, "nixl": NixlTransport}[name]
    transport: Transport = kind(rank, FABRIC.settings())
    transport.register(np.full(NBYTES, rank, np.uint8))
    return transport


def victim(pipe: mp.connection.Connection, name: str, doing: str) -> None:
    transport = start(name, 1)
    pipe.send(transport.address())
    transport.connect({0: pipe.recv()})
    if doing == "receiving":
        transport.send(0, WHOLE[:1], 1)
    transport.progress()
    os.kill(os.getpid(), signal.SIGKILL)


def flow_of(transport: Transport, doing: str) -> RecvFlow | SendFlow | ReadFlow | WriteFlow:
    if doing == "receiving":
        return RecvFlow(transport, 1, WHOLE, 0)
    flow: SendFlow | ReadFlow | WriteFlow
    if doing == "sending":
        flow = SendFlow(transport, 1, WHOLE, 0, window=1)
    else:
        flow = (ReadFlow if doing == "reading" else WriteFlow)(transport, 1, WHOLE, WHOLE, window=1)
    flow.release(1)
    return flow


def main() -> None:
    name, doing = sys.argv[1:]
    mine, theirs = mp.Pipe()
    child = mp.get_context("spawn").Process(target=victim, args=(theirs, name, doing))
    child.start()
    transport = start(name, 0)
    address = mine.recv()
    mine.send(transport.address())
    transport.connect({1: address})
    flow = flow_of(transport, doing)
    deadline = time.monotonic() + 20
    try:
        while time.monotonic() < deadline and not flow.done:
            flow.advance()
            transport.progress()
        print("not noticed in 20 s", flush=True)
    except TransportError as error:
        print(f"noticed: {error}", flush=True)
    child.join()
    transport.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main()
