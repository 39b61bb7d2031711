"""What fetching blocks from another rank costs, measured before the first block.

The client takes part, as in all that is collective. What each worker measures by itself, which needs torch, is in
``fetch_costs``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from xpyd.clock import wait_quietly
from xpyd.economics.cost import LinkModel, LinkPoint, fit_link
from xpyd.kv.layout import PoolLayout
from xpyd.kv.remote import plan_fetch
from xpyd.placement import Placement, Role
from xpyd.transport.base import Transport
from xpyd.worker.transfer_config import TransferConfig
from xpyd.worker.wire import receive_once, send_once

NUM_BLOCKS = (1, 4, 16, 48)
NUM_COPIES = 8  # of each size, of which the fastest counts: a stall on a busy node is longer than any copy here


@dataclass(frozen=True)
class Shelf:
    """The blocks that a rank keeps for all workers, behind a pool of this layout."""

    layout: PoolLayout
    begin: int  # its first byte in the registered memory


def sharers(placement: Placement) -> tuple[int, ...]:
    """The ranks that share the remote pool: all that compute prompts."""
    return placement.leaders(*(role for role in Role if role not in (Role.CLIENT, Role.DECODE)))


def measure_remote_link(
    comm: Any, placement: Placement, transport: Transport, shelf: Shelf | None, config: TransferConfig
) -> LinkModel | None:
    """Fetches of scattered blocks between the first two ranks that share the pool, the same on every rank. Collective.

    None where one rank alone has it. ``shelf`` is this rank's own. Raises ValueError as ``fit_link``.
    """
    ranks = sharers(placement)
    if len(ranks) < 2:
        return None
    source, destination = ranks[:2]
    points: list[LinkPoint] = []
    if comm.rank in (source, destination) and shelf is not None:
        layout = shelf.layout
        sizes = [count for count in NUM_BLOCKS if 2 * count <= layout.num_blocks] or [1]
        for seq, count in enumerate(sizes * (NUM_COPIES + 1)):
            table = range(0, 2 * count, 2) if 2 * count <= layout.num_blocks else range(count)
            plan = plan_fetch(layout, (shelf.begin, [0] * count), table, config.max_piece_bytes)
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
