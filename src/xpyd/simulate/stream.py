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
    offset_ns, number = 0, 0
    for run in range(num_runs):
        which = pair * num_runs + run
        last_ns = 0
        for request in workload.build(which if num_known is None else which % num_known):
            if number == wanted:
                return
            last_ns = request.arrival_offset_ns
            if run:
                request = _moved(request, number, offset_ns + last_ns)
            yield request
            number += 1
        offset_ns += last_ns


def _moved(request: Request, number: int, offset_ns: int) -> Request:
    """With another id and arrival; spelt out, since ``replace`` takes several times as long."""
    return Request(
        number,
        offset_ns,
        request.input_len,
        request.output_len,
        request.class_name,
        request.seed,
        request.prefix_len,
        request.prefix_seed,
        request.priority,
    )


def _num_runs_of_trace(workload: WorkloadConfig) -> int | None:
    """Whole runs that the trace has rows for; None where requests are drawn."""
    if workload.trace is None:
        return None
    return max(1, len(workload.trace.load().rows) // workload.num_requests)
