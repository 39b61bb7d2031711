"""Requests one after another, however many, with one run of the workload in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator

from xpyd.request import Request
from xpyd.workload.config import WorkloadConfig


def stream_requests(workload: WorkloadConfig, pair: int, num_requests: int | None) -> Iterator[Request]:
    """The requests of a block: those that a real run plays, or ``num_requests`` in runs that follow each other.

    Run k of pair p is what a real run's pair p * runs + k would play, moved to begin where the one before ended. A
    trace begins anew when its rows are used up.
    """
    size = workload.num_requests
    wanted = num_requests or size
    num_runs = -(-wanted // size)
    num_known = _num_runs_of_trace(workload)
    begin_ns = 0
    for run in range(num_runs):
        which = pair * num_runs + run
        requests = workload.build(which if num_known is None else which % num_known, run * size, begin_ns)
        yield from requests[: wanted - run * size]
        begin_ns = requests[-1].arrival_offset_ns


def _num_runs_of_trace(workload: WorkloadConfig) -> int | None:
    """Whole runs that the trace has rows for; None where requests are drawn."""
    if workload.trace is None:
        return None
    return max(1, len(workload.trace.load().rows) // workload.num_requests)
