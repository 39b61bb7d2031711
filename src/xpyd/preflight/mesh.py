"""Does every rank hear every other over MPI? Asked before any collective, which would hang where one does not.

Only messages between two ranks are used here, each looked for until a bound; rank 0 collects and decides.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

PING_TAG, REPORT_TAG, VERDICT_TAG = 7011, 7012, 7013
SLEEP_S = 1e-3


def silent_peers(comm: Any, timeout_s: float) -> list[tuple[int, int]] | None:
    """(rank, peer that it did not hear within ``timeout_s``) at rank 0, [] where all is well; None at other ranks.

    Every rank calls this. Where the list is not empty MPI cannot be used any further: rank 0 must end the job, and
    the other ranks do not return.
    """
    unheard = _ping(comm, timeout_s)
    if comm.rank:
        report = comm.isend(unheard, dest=0, tag=REPORT_TAG)
        verdict = comm.irecv(source=0, tag=VERDICT_TAG)
        _wait(lambda: verdict.test()[0], None)
        report.wait()
        return None
    silent = [(0, peer) for peer in unheard]
    reports = {rank: comm.irecv(source=rank, tag=REPORT_TAG) for rank in range(1, comm.size) if rank not in unheard}
    deadline = time.monotonic() + 2 * timeout_s  # theirs may have begun a timeout_s later than ours
    for rank, request in reports.items():
        found: list[list[int]] = []
        if _wait(partial(_receive, request, found), deadline):
            silent += [(rank, peer) for peer in found[0]]
        else:
            silent.append((0, rank))
    if not silent:
        for request in [comm.isend(True, dest=rank, tag=VERDICT_TAG) for rank in reports]:
            request.wait()
    return silent


def _ping(comm: Any, timeout_s: float) -> list[int]:
    peers = [rank for rank in range(comm.size) if rank != comm.rank]
    sent = [comm.isend(None, dest=peer, tag=PING_TAG) for peer in peers]
    heard = {peer: comm.irecv(source=peer, tag=PING_TAG) for peer in peers}
    left = set(peers)
    deadline = time.monotonic() + timeout_s

    def all_heard() -> bool:
        left.difference_update([peer for peer in left if heard[peer].test()[0]])
        return not left

    if _wait(all_heard, deadline):
        for request in sent:
            request.wait()
    return sorted(left)


def _receive(request: Any, found: list[Any]) -> bool:
    done, content = request.test()
    if done:
        found.append(content)
    return bool(done)


def _wait(arrived: Callable[[], bool], deadline: float | None) -> bool:
    """True once ``arrived``; False at the deadline. Sleeps in between: nothing here is timed."""
    while not arrived():
        if deadline is not None and time.monotonic() > deadline:
            return False
        os.sched_yield()
        time.sleep(SLEEP_S)
    return True
