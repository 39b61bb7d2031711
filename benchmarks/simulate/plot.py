"""The curve of the simulator: CPU time per request over the number of instances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import matplotlib

from benchmarks.simulate.point import Measured, Point

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = {"round_robin": "tab:blue", "least_outstanding": "tab:orange"}
LINES = {"compiled": "-", "plain": "--"}


def plot(points: Sequence[Point], measured: Sequence[Measured], file: str) -> None:
    """One line for each router and simulator, both axes logarithmic, written to ``file``."""
    curves: defaultdict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for point, found in zip(points, measured, strict=True):
        curves[point.simulator, point.router].append((point.num_instances, found.us_per_request))
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (simulator, router), own in curves.items():
        instances, us = zip(*sorted(own), strict=True)
        axes.plot(
            instances, us, LINES[simulator], marker="o", color=COLOURS.get(router), label=f"{router}, {simulator}"
        )
    ticks = sorted({point.num_instances for point in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("instances, half prefill, half decode; requests in proportion")
    axes.set_ylabel("us of CPU per request")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
