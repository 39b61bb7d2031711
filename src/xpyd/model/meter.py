"""What the exchange between the ranks of an instance costs one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter_ns, thread_time_ns


class Meter:
    """``busy_ns`` on the clock, waiting for slower ranks included; ``cpu_ns`` of this thread; ``num_bytes`` put in."""

    def __init__(self) -> None:
        self.busy_ns = 0
        self.cpu_ns = 0
        self.num_bytes = 0

    @contextmanager
    def timed(self, num_bytes: int = 0) -> Iterator[None]:
        """Count what is done inside."""
        begin_ns, cpu_begin_ns = perf_counter_ns(), thread_time_ns()
        yield
        self.busy_ns += perf_counter_ns() - begin_ns
        self.cpu_ns += thread_time_ns() - cpu_begin_ns
        self.num_bytes += num_bytes

    def read(self) -> tuple[int, int, int]:
        """(busy_ns, cpu_ns, num_bytes) so far."""
        return self.busy_ns, self.cpu_ns, self.num_bytes
