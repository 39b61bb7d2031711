"""Rank 1 dies by SIGKILL in mid-transfer; rank 0 must notice through UCX, within a bound, and name the peer.

Usage: killed_peer.py receiving|sending (what rank 0 does).
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
from xpyd.transport.base import TransportError
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.flow import RecvFlow, SendFlow
from xpyd.transport.ucx import UcxTransport

NBYTES = 64 << 20
FABRIC = FabricConfig("test", 10.0, tls=("tcp",))


def victim(pipe: mp.connection.Connection, survivor: str) -> None:
    transport = UcxTransport(1, FABRIC.settings())
    transport.register(np.ones(NBYTES, np.uint8))
    pipe.send(transport.address())
    transport.connect({0: pipe.recv()})
    if survivor == "receiving":
        transport.send(0, Span(0, NBYTES), 1)
        transport.progress()
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    mine, theirs = mp.Pipe()
    child = mp.get_context("spawn").Process(target=victim, args=(theirs, sys.argv[1]))
    child.start()
    transport = UcxTransport(0, FABRIC.settings())
    transport.register(np.zeros(NBYTES, np.uint8))
    address = mine.recv()
    mine.send(transport.address())
    transport.connect({1: address})
    flow: RecvFlow | SendFlow
    if sys.argv[1] == "receiving":
        flow = RecvFlow(transport, 1, [Span(0, NBYTES)], 0)
    else:
        flow = SendFlow(transport, 1, [Span(0, NBYTES)], 0, window=1)
        flow.release(1)
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
