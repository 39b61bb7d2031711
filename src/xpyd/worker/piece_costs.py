"""What a piece and a copy cost on this cluster, measured before the first block: for ``transfer.staging=auto`` alone.

The same blocks are timed as neighbours and scattered, one right after the other: what the second costs more is its
pieces, whatever else the machine does. The points of the ledger's calibration (few large pieces) cannot tell that.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from xpyd.clock import wait_quietly
from xpyd.economics.cost import LinkPoint
from xpyd.kv.coalesce import PieceCosts, fit_pieces
from xpyd.kv.plan import Plan, plan_request
from xpyd.kv.staging import gather, plan_staged, scatter
from xpyd.placement import Placement, Role
from xpyd.transport.base import Transport
from xpyd.units import NS_PER_S, gbps_to_bytes_per_s
from xpyd.worker.transfer_config import TransferConfig
from xpyd.worker.wire import receive_once, send_once

if TYPE_CHECKING:  # torch: the client takes part, and has no cache
    from xpyd.kv.cache import KVCache

NUM_BLOCKS = (8, 32, 96)  # of each timed hand-off, as far as they fit the pool twice
NUM_REPEATS = 5


def measure_piece_costs(
    comm: Any,
    placement: Placement,
    transport: Transport,
    cache: KVCache | None,
    config: TransferConfig,
    rate_gbps: float,
) -> PieceCosts:
    """Costs between the first prefill and the first decode rank, the same on every rank. Collective.

    ``rate_gbps`` is taken for the bandwidth where times are too noisy to show one (see ``fit_pieces``).
    """
    source, destination = placement.ranks(Role.PREFILL)[0], placement.ranks(Role.DECODE)[0]
    points: list[LinkPoint] = []
    cells = (0.0, 0.0)
    if comm.rank in (source, destination):
        assert cache is not None
        cells = _time_copies(cache, config)
        for seq, plan in enumerate(_plans(cache, config)):
            if comm.rank == source:
                send_once(transport, comm, destination, plan, seq, config.pieces_in_flight)
            else:
                seconds = receive_once(transport, comm, source, plan, seq, config.pieces_in_flight)
                points.append(LinkPoint(plan.nbytes, len(plan.source), seconds))
    wait_quietly(comm)
    everything = comm.allgather((points, cells))
    timed = everything[destination][0]
    timed = timed[len(timed) // (NUM_REPEATS + 1) :]  # the first round warms up
    link = fit_pieces(list(zip(timed[::2], timed[1::2], strict=True)), gbps_to_bytes_per_s(rate_gbps))
    return PieceCosts(link, everything[source][1][0], everything[destination][1][1])


def _plans(cache: KVCache, config: TransferConfig) -> Iterator[Plan]:
    """Every size as one run of blocks and as blocks of which no two are neighbours, in every round."""
    layout = cache.layout
    sizes = [n for n in NUM_BLOCKS if 2 * n <= layout.num_blocks] or [max(1, layout.num_blocks // 2)]
    for _ in range(NUM_REPEATS + 1):
        for n in sizes:
            for table in (list(range(n)), list(range(0, 2 * n, 2))):
                yield plan_request(layout, table, table, config.max_piece_bytes)


def _time_copies(cache: KVCache, config: TransferConfig) -> tuple[float, float]:
    """Seconds to gather and to scatter one block of one layer, medians over slots full of scattered blocks."""
    layout, buffer = cache.layout, cache.buffer
    table = list(range(0, layout.num_blocks, 2))
    pieces = plan_staged(layout, table, table, config.max_piece_bytes).pieces
    gathers, scatters = [], []
    for piece in (pieces * NUM_REPEATS)[: 4 * NUM_REPEATS]:
        stamps = [perf_counter_ns()]
        gather(buffer, piece.source, layout.block_bytes, layout.nbytes)
        stamps.append(perf_counter_ns())
        scatter(buffer, piece.destination, layout.block_bytes, layout.nbytes)
        stamps.append(perf_counter_ns())
        gather_ns, scatter_ns = np.diff(stamps)
        gathers.append(float(gather_ns) / len(piece.source) / NS_PER_S)
        scatters.append(float(scatter_ns) / len(piece.source) / NS_PER_S)
    return median(gathers), median(scatters)
