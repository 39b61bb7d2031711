"""What a rank with a model keeps for a whole run: its shards, pools and tiers; and the worker they make for a block.

The client has none of it: a session imports this file at the other ranks alone, since torch takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from xpyd.economics.cost import LinkModel
from xpyd.kv.coalesce import PieceCosts
from xpyd.model.spec import ModelSpec
from xpyd.placement import Placement, Role
from xpyd.scheduler.registry import build_scheduler
from xpyd.transport.base import Transport
from xpyd.worker.base import Worker
from xpyd.worker.block import Block, Setup
from xpyd.worker.desk import Desk
from xpyd.worker.destination import DestinationEnd
from xpyd.worker.engine import Engine
from xpyd.worker.errors import WorkerError
from xpyd.worker.follower import Follower
from xpyd.worker.mover import Mover
from xpyd.worker.remote_link import Shelf
from xpyd.worker.runners import Runners
from xpyd.worker.serving import ServingWorker
from xpyd.worker.sharded import ShardedDestination, ShardedSource
from xpyd.worker.shards import Shapes, instance_blocks
from xpyd.worker.source import SourceEnd
from xpyd.worker.speculation import build_speculator
from xpyd.worker.tiers import Tiers, tier_rows


class Equipment:
    """Collective to create, among the ranks of each instance of ``placement``.

    Its pool is there before the transport that registers it: ``connect`` is called in between.
    """

    def __init__(self, setup: Setup, comm: Any, spec: ModelSpec, placement: Placement, num_threads: int) -> None:
        self.setup, self.spec, self.rank = setup, spec, int(comm.rank)
        self.tiers = Tiers(setup.scheduler, setup.transfer, spec)
        self._runners = self._make_runners(comm, num_threads)
        self.quarantine: dict[tuple[int, ...], frozenset[int]] = {}  # blocks by the ranks of the instance
        self._transport: Transport | None = None
        self._piece_costs: PieceCosts | None = None
        self.runner = self._runners.of(placement.instance_of(self.rank))  # of the configured placement

    def _make_runners(self, comm: Any, num_threads: int) -> Runners:
        return Runners(self.setup, comm, self.spec, num_threads, self.tiers.registered_bytes)

    def shelf(self, placement: Placement) -> Shelf:
        """The part of this rank's memory that the remote pool fetches from."""
        return self.tiers.shelf(placement, self.runner)

    def connect(self, transport: Transport, remote: LinkModel | None, piece_costs: PieceCosts | None) -> None:
        """Hand-offs go by ``transport``. The rest was measured on it, where it was asked for."""
        self._transport, self._piece_costs = transport, piece_costs
        self.tiers.remote = remote

    def prepare(self, placement: Placement, block: Block) -> None:
        """What a block needs and no earlier one did: an arm's first block may have to load its model."""
        instance = placement.instance_of(self.rank)
        runner = self._runners.of(instance)
        if block.speculates:
            self._runners.draft_of(instance)
        self.tiers.prepare(runner, block.scheduler or self.setup.scheduler)

    def worker(self, placement: Placement, block: Block, desk: Callable[..., Desk]) -> Worker | Follower:
        """What this rank does in a block: lead its instance of one or several ranks, or follow.

        ``desk`` makes this rank's desk from its role and followers.
        """
        setup, instance = self.setup, placement.instance_of(self.rank)
        runner, role, timeout_s = self._runners.of(instance), instance.role, setup.drain_timeout_s
        scheduler = block.scheduler or setup.scheduler
        moves = role is not Role.COLOCATED or scheduler.num_remote_blocks
        transport = self._transport if moves else None
        shapes = Shapes(self.spec, placement, scheduler, block.transfer or setup.transfer)
        if self.rank != instance.leader:
            return Follower(runner, desk(role), instance.leader, transport, shapes)
        num_blocks = instance_blocks(self.spec, instance.division, setup.scheduler.num_kv_blocks)
        fetch = self.tiers.fetch(runner, scheduler)
        policy = build_scheduler(replace(scheduler, num_kv_blocks=num_blocks), role, fetch)
        speculator = None
        if block.speculates and role is not Role.PREFILL:  # a prompt's only token comes with it
            speculator = build_speculator(setup.speculation, self._runners.draft_of(instance), policy)
        engine = Engine(runner, policy, speculator, self.tiers.arenas(runner, scheduler))
        engine.scheduler.withhold(self.quarantine.get(instance.ranks, frozenset()))
        mine = desk(role, instance.ranks[1:])
        if transport is None:
            return ServingWorker(engine, mine, timeout_s)
        mover = Mover(engine, mine, transport, shapes.transfer, self._piece_costs)
        ends = _ends(role, engine, mover, shapes if setup.placement.several_ranks else None)
        return ServingWorker(engine, mine, timeout_s, mover, *ends, self.tiers.pool_end(engine, mover, placement))

    def serve(self, worker: Worker | Follower, placement: Placement) -> None:
        """Play the worker's part to the end of the block."""
        worker.run()
        if isinstance(worker, ServingWorker):
            worker.desk.rows.write_all(list(tier_rows(worker.desk.block, self.rank, worker.engine, worker.pool)))
        if isinstance(worker, Worker):
            self._check_blocks(worker, placement)

    def _check_blocks(self, worker: Worker, placement: Placement) -> None:
        """After a block that was served to its end every KV block is free again, or in quarantine for good."""
        scheduler, ranks = worker.engine.scheduler, placement.instance_of(self.rank).ranks
        self.quarantine[ranks] = scheduler.quarantined
        num_held = scheduler.total_blocks - scheduler.num_free_blocks - len(scheduler.quarantined)
        if num_held and not worker.aborted:
            raise WorkerError(f"{worker.desk.who}: {num_held} KV blocks were not returned by the block")


def _ends(
    role: Role, engine: Engine, mover: Mover, shapes: Shapes | None
) -> tuple[SourceEnd | None, DestinationEnd | None]:
    """The ends of the hand-off that a role has; ``shapes`` where a hand-off is between several ranks."""
    source: SourceEnd | None = None
    destination: DestinationEnd | None = None
    if role is Role.COLOCATED:
        return None, None
    if role in (Role.PREFILL, Role.HYBRID):
        source = SourceEnd(engine, mover) if shapes is None else ShardedSource(engine, mover, shapes)
    if role in (Role.DECODE, Role.HYBRID):
        destination = DestinationEnd(engine, mover) if shapes is None else ShardedDestination(engine, mover, shapes)
    return source, destination
