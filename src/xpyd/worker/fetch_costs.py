"""What a block costs from a lower tier, and what its tokens cost to compute: measured on the ranks before they serve.

``kv.tiers`` decides with it: fetch where that is the cheaper of the two. All workers measure at the same moment, since
they will also work at the same moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter_ns
from typing import Any

from xpyd.clock import wait_quietly
from xpyd.economics.cost import ComputePoint, LinkModel, LinkPoint, fit_link
from xpyd.kv.arenas import Arenas, block_nbytes
from xpyd.kv.entries import BlockMove
from xpyd.kv.remote import plan_fetch
from xpyd.model.runner import ModelRunner, Segment
from xpyd.transport.base import Transport
from xpyd.units import NS_PER_S
from xpyd.worker.transfer_config import TransferConfig
from xpyd.worker.wire import receive_once, send_once

CHUNKS = ((16, 0), (64, 0), (192, 0), (64, 192), (16, 240))  # (new tokens, tokens with KV before them)
NUM_BLOCKS = (1, 4, 16, 48)
NUM_REPEATS = 4
NUM_COPIES = 8  # of each size, of which the fastest counts: a stall on a busy node is longer than any copy here


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


def remote_link(
    comm: Any,
    pair: tuple[int, int],
    transport: Transport,
    runner: ModelRunner | None,
    shelf: int,
    config: TransferConfig,
) -> LinkModel:
    """Fetches of scattered blocks between two ranks, the same on every rank; ``shelf``: its first byte. Collective."""
    source, destination = pair
    points: list[LinkPoint] = []
    if comm.rank in pair and runner is not None:
        layout = runner.cache.layout
        sizes = [count for count in NUM_BLOCKS if 2 * count <= layout.num_blocks] or [1]
        for seq, count in enumerate(sizes * (NUM_COPIES + 1)):
            table = range(0, 2 * count, 2) if 2 * count <= layout.num_blocks else range(count)
            plan = plan_fetch(layout, (shelf, [0] * count), table, config.max_piece_bytes)
            if comm.rank == source:
                send_once(transport, comm, destination, plan, seq, config.pieces_in_flight)
                continue
            seconds = receive_once(transport, comm, source, plan, seq, config.pieces_in_flight)
            if seq >= len(sizes):  # the first round warms up
                points.append(LinkPoint(plan.nbytes, 1, seconds))
    wait_quietly(comm)
    timed: list[LinkPoint] = comm.bcast(points, root=destination)
    return fit_link(fastest(timed)).model


def fastest(points: list[LinkPoint]) -> list[LinkPoint]:
    """Of each number of bytes the point that took least."""
    found: dict[int, LinkPoint] = {}
    for point in points:
        found[point.num_bytes] = min(point, found.get(point.num_bytes, point), key=lambda each: each.seconds)
    return list(found.values())
