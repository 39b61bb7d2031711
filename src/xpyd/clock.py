"""One clock for all ranks: stamps taken anywhere are given on the client's (rank 0's) monotonic clock.

The offset is half of the fastest round trip's asymmetry, unknown; its bound is half of that round trip. Both are
stored with the run. Ranks of one node share CLOCK_MONOTONIC: the measurement must then be 0 within the bound.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

TAG = 7001
WAIT_SLEEP_S = 1e-3
PATIENCE_S = 60.0  # for one message of the peer whose turn it is


@dataclass(frozen=True)
class Clock:
    """``now_ns()`` = this rank's monotonic clock + ``offset_ns``, right within ``error_ns``."""

    offset_ns: int = 0
    error_ns: int = 0

    def now_ns(self) -> int:
        return perf_counter_ns() + self.offset_ns

    def at(self, local_ns: int) -> int:
        """A stamp of this rank's ``perf_counter_ns`` on the client's clock."""
        return local_ns + self.offset_ns


def synchronise(
    comm: Any, rounds: int = 32, peers: Sequence[int] | None = None, wait: Callable[[], None] | None = None
) -> Clock:
    """Measure this rank's offset to rank 0; collective. The fastest of ``rounds`` trips counts (Cristian 1989).

    ``peers``: where ranks are lost, those that are left beside rank 0; ``wait`` is their barrier. Raises TimeoutError.
    """
    clock = Clock()
    for peer in range(1, comm.size) if peers is None else peers:
        if comm.rank == 0:
            _answer(comm, peer, rounds)
        elif comm.rank == peer:
            clock = _ask(comm, rounds)
        if wait is None:
            wait_quietly(comm)
        else:
            wait()
    return clock


def _receive(comm: Any, buffer: bytearray, source: int) -> None:
    """Receive, yielding the core between looks: where ranks outnumber cores, a spinning one holds up its peer."""
    request = comm.Irecv(buffer, source=source, tag=TAG)
    deadline = time.monotonic() + PATIENCE_S
    while not request.Test():
        os.sched_yield()
        if time.monotonic() > deadline:
            raise TimeoutError(f"rank {comm.rank}: no answer from rank {source} for {PATIENCE_S:.0f} s (clocks)")


def wait_quietly(comm: Any) -> None:
    """A barrier that sleeps: ranks with nothing to do leave their core to those that measure."""
    request = comm.Ibarrier()
    while not request.Test():
        time.sleep(WAIT_SLEEP_S)


def _answer(comm: Any, peer: int, rounds: int) -> None:
    buffer = bytearray(8)
    for _ in range(rounds):
        _receive(comm, buffer, peer)
        comm.Send(struct.pack("<q", perf_counter_ns()), dest=peer, tag=TAG)


def _ask(comm: Any, rounds: int) -> Clock:
    buffer = bytearray(8)
    best = None
    offset = 0
    for _ in range(rounds):
        sent = perf_counter_ns()
        comm.Send(buffer, dest=0, tag=TAG)
        _receive(comm, buffer, 0)
        received = perf_counter_ns()
        if best is None or received - sent < best:
            best = received - sent
            offset = struct.unpack("<q", buffer)[0] - (sent + received) // 2
    assert best is not None
    return Clock(offset, best // 2 + 1)
