"""What a block costs from a lower tier, and what its tokens cost to compute: measured on the ranks before they serve.

``kv.tiers`` decides with it: fetch where that is the cheaper of the two. All workers measure at the same moment, since
they will also work at the same moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter_ns

from xpyd.economics.cost import ComputePoint, LinkModel, LinkPoint, fit_link
from xpyd.kv.arenas import Arenas, block_nbytes
from xpyd.kv.entries import BlockMove
from xpyd.model.runner import ModelRunner
from xpyd.model.segment import Segment
from xpyd.units import NS_PER_S
from xpyd.worker.remote_link import NUM_BLOCKS, NUM_COPIES, fastest

CHUNKS = ((16, 0), (64, 0), (192, 0), (64, 192), (16, 240))  # (new tokens, tokens with KV before them)
NUM_REPEATS = 4


def time_chunks(runner: ModelRunner) -> Iterator[ComputePoint]:
    """Prompt chunks alone, each ``NUM_REPEATS`` times after a warm-up, as far as they fit the pool; overwrites it."""
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


def host_link(runner: ModelRunner, num_host_blocks: int) -> LinkModel:
    """Copies out of a host arena of this size, as alpha and bytes over bandwidth. Raises ValueError as ``fit_link``."""
    layout = runner.cache.layout
    arenas = Arenas(runner.cache, num_host_blocks)
    points: list[LinkPoint] = []
    for repeat in range(-1, NUM_COPIES):
        for count in NUM_BLOCKS:
            moves = [BlockMove("host", i % num_host_blocks, "pool", i % layout.num_blocks) for i in range(count)]
            begin_ns = perf_counter_ns()
            arenas.move(moves)
            seconds = (perf_counter_ns() - begin_ns) / NS_PER_S
            if repeat >= 0:
                points.append(LinkPoint(count * block_nbytes(layout), 1, seconds))
    return fit_link(fastest(points)).model
