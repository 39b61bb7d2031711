"""Cores and timers: each worker on its own cores where a node has enough, and sleeps that end on time."""

from __future__ import annotations

import ctypes
import os
from typing import Any

from xpyd.mpi import MPI
from xpyd.placement import CLIENT_RANK

PR_SET_TIMERSLACK = 29  # linux/prctl.h


def sharpen_sleeps() -> None:
    """Let this thread's sleeps end on time: Linux adds up to 50 us by default, a good part of a short latency."""
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)


def divide_cores(cores: list[int], num_workers: int) -> list[list[int]]:
    """Equal shares of ``cores`` for each worker of a node; everyone gets all of them where there are too few."""
    share = len(cores) // num_workers if num_workers else 0
    if share == 0:
        return [cores] * num_workers
    return [cores[i * share : (i + 1) * share] for i in range(num_workers)]


def pin_cores(comm: Any) -> list[int]:
    """Pin this rank beside the other workers of its node; returns its cores. Collective.

    A launcher that has bound the ranks of a node to different cores already is left alone.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    mine = sorted(os.sched_getaffinity(0))
    members: list[tuple[int, list[int]]] = node.allgather((comm.rank, mine))
    node.Free()
    workers = [(rank, cores) for rank, cores in members if rank != CLIENT_RANK]
    bound_already = any(cores != workers[0][1] for _, cores in workers)
    if comm.rank == CLIENT_RANK or bound_already:
        return mine
    shares = divide_cores(mine, len(workers))
    share = shares[[rank for rank, _ in workers].index(comm.rank)]
    os.sched_setaffinity(0, share)
    return share
