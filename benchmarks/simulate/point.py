"""One point of the benchmark, and the choice of the simulator for it, before any module of the simulator is imported.

So every point has a fresh process.
"""

from __future__ import annotations

from dataclasses import dataclass

from xpyd import compiled


@dataclass(frozen=True)
class Point:
    num_instances: int
    num_requests: int  # of a block
    router: str
    simulator: str
    trace: str | None
    format: str
    num_blocks: int = 1  # one after another, each from empty instances


@dataclass(frozen=True)
class Measured:
    """CPU seconds for making the cluster, and for drawing and playing the requests; peak memory of the process."""

    making_s: float
    playing_s: float
    simulated_s: float
    peak_mib: float
    num_tokens: int
    us_per_request: float


def measure(point: Point) -> Measured:
    """Play ``point`` in this process. Raises RuntimeError where it wants a compiled simulator and there is none."""
    if point.simulator == "compiled" and not compiled.use():
        raise RuntimeError("--simulators compiled: there is no build of these sources; make compile-simulator")
    from benchmarks.simulate.measure import play

    return play(point)
