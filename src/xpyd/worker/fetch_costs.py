"""What a block costs from a lower tier, and what its tokens cost to compute: measured on the rank before it serves.

``kv.tiers`` decides with it: fetch where that is the cheaper of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter_ns

from xpyd.economics.cost import ComputeModel, ComputePoint, LinkModel, LinkPoint, fit_compute, fit_link
from xpyd.kv.arenas import Arenas, block_nbytes
from xpyd.kv.prefix import BlockMove
from xpyd.kv.tiers import FetchCosts
from xpyd.model.runner import ModelRunner, Segment
from xpyd.units import NS_PER_S

CHUNKS = ((16, 0), (64, 0), (192, 0), (64, 192), (16, 240))  # (new tokens, tokens with KV before them)
NUM_BLOCKS = (1, 4, 16, 64)
NUM_REPEATS = 4


def measure_fetch(runner: ModelRunner, num_host_blocks: int) -> FetchCosts:
    """The costs of the host tier on this rank; overwrites the pool's first blocks. Raises ValueError as fit_link."""
    return host_costs(runner, fit_compute(list(time_chunks(runner))).model, num_host_blocks)


def time_chunks(runner: ModelRunner) -> Iterator[ComputePoint]:
    """Prompt chunks alone, each ``NUM_REPEATS`` times after a warm-up; those that fit the pool."""
    size = runner.cache.block_size
    for repeat in range(-1, NUM_REPEATS):
        for new, before in CHUNKS:
            table = list(range(-(-(new + before) // size)))
            if len(table) > runner.cache.layout.num_blocks:
                continue
            begin_ns = perf_counter_ns()
            runner.run([Segment([1] * new, before, table, 0, 0, True)])
            if repeat >= 0:
                yield ComputePoint((perf_counter_ns() - begin_ns) / NS_PER_S, new, before)


def host_costs(runner: ModelRunner, compute: ComputeModel, num_host_blocks: int) -> FetchCosts:
    """The host tier's costs, from timed copies out of an arena of its size."""
    layout = runner.cache.layout
    arenas = Arenas(runner.cache, num_host_blocks)
    points: list[LinkPoint] = []
    for repeat in range(-1, NUM_REPEATS):
        for count in NUM_BLOCKS:
            moves = [BlockMove("host", i % num_host_blocks, "pool", i % layout.num_blocks) for i in range(count)]
            begin_ns = perf_counter_ns()
            arenas.move(moves)
            seconds = (perf_counter_ns() - begin_ns) / NS_PER_S
            if repeat >= 0:
                points.append(LinkPoint(count * block_nbytes(layout), count, seconds))
    link = _link(points)
    return FetchCosts(compute, link, runner.cache.block_size, block_nbytes(layout))


def _link(points: list[LinkPoint]) -> LinkModel:
    """A copy's pieces and bytes grow together, so that all of it is laid to the bytes."""
    return fit_link([LinkPoint(point.num_bytes, 1, point.seconds) for point in points]).model
