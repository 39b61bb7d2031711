"""Cores and timers: each worker on its own cores where a node has enough, and sleeps that end on time."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import Any

from xpyd.mpi import MPI
from xpyd.placement import CLIENT_RANK

PR_SET_TIMERSLACK = 29  # linux/prctl.h


def sharpen_sleeps() -> None:
    """Let this thread's sleeps end on time: Linux adds up to 50 us by default, a good part of a short latency."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


@dataclass(frozen=True)
class Cores:
    """What a rank runs on. ``mine`` is empty where it is not pinned."""

    mine: list[int] = field(default_factory=list)
    num_threads: int = 1


def divide_cores(cores: list[int], num_workers: int) -> list[list[int]]:
    """Equal shares of ``cores`` for each worker of a node; everyone gets all of them where there are too few."""
    share = len(cores) // num_workers if num_workers else 0
    if share == 0:
        return [cores] * num_workers
    return [cores[i * share : (i + 1) * share] for i in range(num_workers)]


def count_threads(mine: list[int], workers: list[list[int]]) -> int:
    """Threads of a worker on its cores, beside those of all ``workers`` of its node, itself among them.

    Together no more than there are cores: threads of one product wait for each other by spinning, so that one that has
    no core holds up the others of its rank, which hold up all other ranks.
    """
    return max(1, len(mine) // max(1, sum(bool(set(mine) & set(cores)) for cores in workers)))


def pin_cores(comm: Any, wanted: bool) -> Cores:
    """Pin this rank beside the other workers of its node, where that is ``wanted``. Collective.

    A launcher that has bound the ranks of a node to different cores already is left alone.
    """
    if not wanted:
        return Cores()
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    mine = sorted(os.sched_getaffinity(0))
    members: list[tuple[int, list[int]]] = node.allgather((comm.rank, mine))
    node.Free()
    workers = {rank: cores for rank, cores in members if rank != CLIENT_RANK}
    if comm.rank == CLIENT_RANK:
        return Cores(mine)
    if all(cores == mine for cores in workers.values()):
        workers = dict(zip(workers, divide_cores(mine, len(workers)), strict=True))
        mine = workers[comm.rank]
        os.sched_setaffinity(0, mine)
    return Cores(mine, count_threads(mine, list(workers.values())))
