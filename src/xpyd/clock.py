"""One clock for all ranks: stamps taken anywhere are given on the client's (rank 0's) monotonic clock.

Ranks under one kernel share CLOCK_MONOTONIC: their offset is 0, exactly, and a stamp of one is never before what
caused it on another. Elsewhere the offset is measured, and right within half of the fastest round trip; that bound is
stored with the run.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter_ns
from typing import Any

TAG = 7001
WAIT_SLEEP_S = 1e-3
PATIENCE_S = 60.0  # for one message of the peer whose turn it is
ANSWER = struct.Struct("<q8s")  # a stamp of rank 0, and whose clock that is
NO_SOURCE = bytes(8)


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


def clock_source() -> bytes:
    """8 bytes that tell clocks apart: this boot of this kernel, in this time namespace. ``NO_SOURCE``: not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        names = os.readlink("/proc/self/ns/time") if Path("/proc/self/ns/time").is_symlink() else ""
    except OSError:
        return NO_SOURCE
    return hashlib.blake2b(f"{boot}{names}".encode(), digest_size=8).digest()


def synchronise(
    comm: Any, rounds: int = 32, peers: Sequence[int] | None = None, wait: Callable[[], None] | None = None
) -> Clock:
    """This rank's offset to rank 0; collective. Measured, the fastest of ``rounds`` trips counts (Cristian 1989).

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
    buffer, source = bytearray(ANSWER.size), clock_source()
    for _ in range(rounds):
        _receive(comm, buffer, peer)
        comm.Send(ANSWER.pack(perf_counter_ns(), source), dest=peer, tag=TAG)


def _ask(comm: Any, rounds: int) -> Clock:
    buffer, mine = bytearray(ANSWER.size), clock_source()
    best = None
    offset = 0
    source = NO_SOURCE
    for _ in range(rounds):
        sent = perf_counter_ns()
        comm.Send(buffer, dest=0, tag=TAG)
        _receive(comm, buffer, 0)
        received = perf_counter_ns()
        if best is None or received - sent < best:
            best = received - sent
            stamp, source = ANSWER.unpack(buffer)
            offset = stamp - (sent + received) // 2
    assert best is not None
    error = best // 2 + 1
    if source == mine != NO_SOURCE and abs(offset) <= error:  # else: a copied machine says that it is another one
        return Clock()
    return Clock(offset, error)
