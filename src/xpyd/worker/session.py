"""What a rank keeps for a whole run: model, pool, transport, mailbox, rows; and how it plays one block.

The same processes serve every arm: between blocks a rank only changes its role, so arms share weights, memory, cores
and connections, and differ in placement, scheduler and transfer alone. Where the arms' instances join different ranks,
a rank keeps a shard of the model, and a pool of the same size, for each.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NoReturn

from xpyd.clock import Clock, synchronise
from xpyd.dispatch import Dispatch, HybridDispatch, KvMap, PoolDispatch
from xpyd.economics.scenario import Calibration, Scenario
from xpyd.faults import EXIT_RANKS_LOST, RanksLost
from xpyd.hybrid import HybridConfig, HybridPolicy
from xpyd.kv.coalesce import PieceCosts
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.mpi import leave_job, survives_ends
from xpyd.placement import CLIENT_RANK, Placement, Role, make_hybrid, node_names, place
from xpyd.records import HYBRID, SPLIT_ARMS, BlockRow, LossRow, RequestRow
from xpyd.run_dir import RowWriter, RunDir
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.registry import build_scheduler
from xpyd.worker.affinity import pin_cores, sharpen_sleeps
from xpyd.worker.base import Worker, WorkerError
from xpyd.worker.block import Block, Setup
from xpyd.worker.client import Client, Played
from xpyd.worker.crew import Crew
from xpyd.worker.desk import Desk
from xpyd.worker.destination import DestinationEnd
from xpyd.worker.engine import Engine
from xpyd.worker.follower import Follower
from xpyd.worker.links import Links
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.mover import Mover
from xpyd.worker.piece_costs import measure_piece_costs
from xpyd.worker.pulse import Outcast
from xpyd.worker.runners import Runners
from xpyd.worker.serving import ServingWorker
from xpyd.worker.sharded import ShardedDestination, ShardedSource
from xpyd.worker.shards import Shapes, instance_blocks
from xpyd.worker.source import SourceEnd
from xpyd.worker.speculation import build_speculator
from xpyd.worker.tiers import Tiers, tier_rows


class Session:
    """Collective to create: every rank of ``comm`` makes one. Raises PlacementError on every rank alike."""

    def __init__(
        self,
        setup: Setup,
        comm: Any,
        run_dir: RunDir,
        should_stop: Callable[[], bool],
        rows: RowWriter | None = None,
    ) -> None:
        """``rows``: of a run that holds several sessions, which closes them itself; default: a writer of its own."""
        self.setup = setup
        self.comm = comm
        self.rank: int = comm.rank
        self.nodes = node_names(comm)
        self.placement = place(setup.placement, self.nodes)
        self.cores = pin_cores(comm, setup.placement.pin_cores)
        sharpen_sleeps()
        self.spec = resolve_spec(setup.model)
        self._shares_rows = rows is not None
        self.rows = rows if rows is not None else RowWriter(run_dir, self.rank)
        self.clock = Clock()
        self.hybrid: tuple[HybridConfig, Calibration, Scenario] | None = None  # at rank 0, where an arm is hybrid
        self._should_stop = should_stop
        self._launcher = os.getppid()
        self._mailbox = Mailbox(comm)
        self.crew = Crew(comm, setup.drain_timeout_s, self._missed, self._still_loading)
        self._begun: set[tuple[str, bool, SchedulerConfig | None]] = set()  # arms that have had a block
        self._block, self._roles = -1, self.placement.roles  # of the block that is played, or was
        self._tiers = Tiers(setup.scheduler, setup.transfer, self.spec)
        self._quarantine: dict[tuple[int, ...], frozenset[int]] = {}  # blocks by the ranks of the instance
        self._runners = self._make_runners()
        self._wait_for_models()
        here = None if self.rank == CLIENT_RANK else self.placement.instance_of(self.rank)
        self.runner = self._runners.of(here) if here is not None else None
        cache = self.runner.cache if self.runner is not None else None
        self.links: Links | None = None
        shares = setup.scheduler.num_remote_blocks > 0
        if shares or not setup.placement.num_colocated:
            buffer, unit_bytes = (cache.buffer, cache.layout.block_bytes) if cache is not None else (None, 0)
            self.links = Links(setup.transport, setup.fabric, comm, self.placement, buffer, unit_bytes, shares)
        if shares and self.links is not None:
            self._tiers.measure_remote(comm, self.placement, self.links.transport, self.runner)
        self._piece_costs: PieceCosts | None = None
        if self.links is not None and setup.transfer.staging == "auto":
            self._piece_costs = measure_piece_costs(
                comm, self.placement, self.links.transport, cache, setup.transfer, setup.fabric.rate_gbps
            )
        gc.freeze()  # libraries and weights stay: walking them again takes 0.3 s before each block

    def _make_runners(self) -> Runners:
        num_threads, tier_bytes = self.cores.num_threads, self._tiers.registered_bytes
        return Runners(self.setup, self.comm, self.spec, num_threads, tier_bytes)

    def play(self, block: Block) -> Played | None:
        """Play one block on every rank; the client's rank gets what it saw. Collective.

        Raises WorkerError when requests did not end in time; the rows of what did are kept.
        """
        try:
            return self._play(block)
        except Outcast as error:
            self._outlive(error)

    def _play(self, block: Block) -> Played | None:
        placement = self.placement_of(block.arm)
        if self.rank != CLIENT_RANK:
            instance = placement.instance_of(self.rank)
            runner = self._runners.of(instance)  # an arm's first block may have to load it, before any clock runs
            if block.speculates:
                self._runners.draft_of(instance)
            self._tiers.prepare(runner, block.scheduler or self.setup.scheduler)
        kind = block.arm, block.speculates, block.scheduler
        self.crew.wait(patient=kind not in self._begun)  # a model may have been loaded
        self._begun.add(kind)
        self._block, self._roles = block.number, placement.roles
        self.clock = synchronise(self.comm, peers=self.crew.ranks[1:], wait=self.crew.wait)
        self.rows.muted = block.number < 0
        before = self._bytes()
        gc.collect()
        gc.disable()
        self._meet()
        played = None
        try:
            part = self._client(block, placement) if self.rank == CLIENT_RANK else self._worker(placement, block)
            if isinstance(part, Client):
                played = part.play(block.requests, block.concurrency)
            else:
                self._serve(part, placement)
        finally:
            gc.enable()
        self._close_block(block, part, played, before)
        return played

    def bcast(self, value: Any) -> Any:
        """The client's value, at every rank that is left."""
        return self.crew.bcast(value)

    def check_whole(self) -> None:
        """Raises RanksLost at the end of a run that went on without some of its ranks."""
        if self.crew.lost:
            raise RanksLost(self.crew.losses)

    def placement_of(self, arm: str) -> Placement:
        """The roles of an arm: the configured placement, it with every worker hybrid, or as many colocated workers."""
        if arm == HYBRID:
            return make_hybrid(self.placement)
        if arm in SPLIT_ARMS or self.setup.placement.num_colocated:
            return self.placement
        return place(self.setup.placement.colocated(), self.nodes)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Write what is pending. The transport is released only when all is well: that may be collective."""
        if not self._shares_rows:
            self.rows.close()
        if kind is not None and issubclass(kind, RanksLost):
            self.crew.wait()  # every row is written before rank 0 merges
        elif kind is None and not self.crew.lost and self.links is not None:
            self.links.close()

    def _outlive(self, error: Outcast) -> NoReturn:
        """Leave where the job survives that; else wait for its end, or that of its launcher."""
        with suppress(OSError):  # nobody may be there to read it
            self.rows.flush()
            print(error, file=sys.stderr, flush=True)
        if survives_ends():
            leave_job()
        while os.getppid() == self._launcher:
            time.sleep(1.0)
        os._exit(EXIT_RANKS_LOST)

    def _desk(self, block: Block, role: Role, followers: tuple[int, ...] = ()) -> Desk:
        return Desk(self.rank, block.number, self._mailbox, self.rows, self.clock, followers, self.setup.faults, role)

    def _serve(self, worker: Worker | Follower, placement: Placement) -> None:
        worker.run()
        if isinstance(worker, ServingWorker):
            for row in tier_rows(worker.desk.block, self.rank, worker.engine, worker.pool):
                self.rows.write(row)
        if isinstance(worker, Worker):
            self._check_blocks(worker, placement)

    def _check_blocks(self, worker: Worker, placement: Placement) -> None:
        """After a block that was served to its end every KV block is free again, or in quarantine for good."""
        scheduler, ranks = worker.engine.scheduler, placement.instance_of(self.rank).ranks
        self._quarantine[ranks] = scheduler.quarantined
        num_held = scheduler.total_blocks - scheduler.num_free_blocks - len(scheduler.quarantined)
        if num_held and not worker.aborted:
            raise WorkerError(f"{worker.desk.who}: {num_held} KV blocks were not returned by the block")

    def _worker(self, placement: Placement, block: Block) -> Worker | Follower:
        """What this rank does in a block: lead its instance of one or several ranks, or follow."""
        setup, instance = self.setup, placement.instance_of(self.rank)
        runner, role, timeout_s = self._runners.of(instance), instance.role, setup.drain_timeout_s
        scheduler = block.scheduler or setup.scheduler
        moves = role is not Role.COLOCATED or scheduler.num_remote_blocks
        transport = self.links.transport if self.links is not None and moves else None
        shapes = Shapes(self.spec, placement, scheduler, block.transfer or setup.transfer)
        if self.rank != instance.leader:
            return Follower(runner, self._desk(block, role), instance.leader, transport, shapes)
        num_blocks = instance_blocks(self.spec, instance.division, setup.scheduler.num_kv_blocks)
        fetch = self._tiers.fetch(runner, scheduler)
        policy = build_scheduler(replace(scheduler, num_kv_blocks=num_blocks), role, fetch)
        speculator = None
        if block.speculates and role is not Role.PREFILL:  # a prompt's only token comes with it
            speculator = build_speculator(setup.speculation, self._runners.draft_of(instance), policy)
        engine = Engine(runner, policy, speculator, self._tiers.arenas(runner, scheduler))
        engine.scheduler.withhold(self._quarantine.get(instance.ranks, frozenset()))
        desk = self._desk(block, role, instance.ranks[1:])
        if transport is None:
            return ServingWorker(engine, desk, timeout_s)
        mover = Mover(engine, desk, transport, shapes.transfer, self._piece_costs)
        ends = _ends(role, engine, mover, shapes if setup.placement.several_ranks else None)
        return ServingWorker(engine, desk, timeout_s, mover, *ends, self._tiers.pool_end(engine, mover, placement))

    def _client(self, block: Block, placement: Placement) -> Client:
        """The client of a block, whose requests are listed by then."""
        for r in block.requests:
            self.rows.write(
                RequestRow(
                    block.number,
                    block.pair,
                    block.arm,
                    r.request_id,
                    r.class_name,
                    r.input_len,
                    r.output_len,
                    r.arrival_offset_ns,
                )
            )
        self.rows.flush()  # a killed run lists its requests
        return Client(
            self._desk(block, Role.CLIENT),
            placement,
            self._dispatch(block, placement),
            self.spec.vocab_size,
            self.setup.drain_timeout_s,
            self._should_stop,
            self.setup.faults,
            self.crew.lost,
        )

    def _dispatch(self, block: Block, placement: Placement) -> Dispatch:
        """Fresh for each block: no arm gains from what another one learnt."""
        router, scheduler = self.setup.router, block.scheduler or self.setup.scheduler
        split = bool(placement.ranks(Role.DECODE))
        cached = scheduler.num_kv_blocks if scheduler.prefix_cache else 0
        kv_map = KvMap(self.spec.vocab_size, scheduler.block_size, cached, self.nodes) if router.sees_kv else None
        pools = PoolDispatch(router.build(), router.build() if split else None, kv_map)
        if block.arm != HYBRID:
            return pools
        assert self.hybrid is not None, "a hybrid block needs a calibration: trial.write_prediction"
        leaders = self.placement.leaders(Role.PREFILL), self.placement.leaders(Role.DECODE)
        return HybridDispatch(HybridPolicy(*self.hybrid, leaders), pools)

    def _close_block(
        self, block: Block, part: Client | Worker | Follower, played: Played | None, before: tuple[int, int]
    ) -> None:
        """Gather the byte counts and write the block's row, unless it was cut short.

        The counts are each rank's word that it has ended the block. Until they are here the client watches, and the
        workers are heard: who is lost after the last token is found, and named, like any other.
        """
        after = self._bytes()
        self.rows.flush(durable=True)  # before the block's row says that all of them are there
        ledger_bytes = 0 if isinstance(part, Client) else part.ledger_bytes
        mine = (ledger_bytes, after[0] - before[0], after[1] - before[1], self.clock.error_ns)
        counts = [each or (0, 0, 0, 0) for each in self.crew.gather(mine, part.attend) or []]
        if isinstance(part, Client) and part.verdict:
            raise WorkerError(f"block {block.number} ({block.arm}): {part.verdict}")
        self._check_crew()
        self._mailbox.give_up(self.crew.lost)
        self._mailbox.drain()
        if played is not None and played.unfinished:
            raise WorkerError(
                f"block {block.number} ({block.arm}): {len(played.unfinished)} requests had not ended after "
                f"run.drain_timeout_s={self.setup.drain_timeout_s} s without a token: {list(played.unfinished)[:8]}"
            )
        if played is not None and not played.stopped:
            self.rows.write(
                BlockRow(
                    block=block.number,
                    pair=block.pair,
                    arm=block.arm,
                    begin_ns=played.begin_ns,
                    end_ns=played.end_ns,
                    num_requests=len(block.requests),
                    clock_error_ns=max(c[3] for c in counts),
                    ledger_bytes=sum(c[0] for c in counts),
                    transport_bytes=sum(c[1] for c in counts),
                    interface_bytes=self._interface_sum([c[2] for c in counts]),
                )
            )
        self.rows.flush(durable=True)
        self._meet()

    def _meet(self) -> None:
        self.crew.wait()
        self._check_crew()

    def _check_crew(self) -> None:
        """Raises WorkerError where a rank did not come to the end of a block, and the policy is to end then."""
        if self.crew.lost and not self.setup.faults.goes_on and self.rank == CLIENT_RANK:
            raise WorkerError(self.crew.losses)

    def _missed(self, rank: int, why: str, silent_s: float) -> str:
        """A rank did not come to a barrier: a row says so, as of one that is lost within a block; returns its name."""
        role, node = self._roles[rank], self.nodes[rank]
        self.rows.write(LossRow(self._block, rank, role.value, node, self.clock.now_ns(), silent_s, 0, why))
        self.rows.flush()
        return f"rank {rank} ({role} on {node}) is lost: {why}"

    def _wait_for_models(self) -> None:
        """Who has loaded its model sleeps until all have: the collectives that follow would spin."""
        self.crew.wait(patient=True)
        if self.crew.lost:
            raise WorkerError(self.crew.losses)

    def _still_loading(self, ranks: list[int], waited_s: float) -> None:
        """Models may take minutes to load; a rank that hangs there is only found by the launcher's bound."""
        names = ", ".join(f"rank {rank} on {self.nodes[rank]}" for rank in ranks)
        print(f"loading models, {waited_s:.0f} s so far: waits for {names}", file=sys.stderr, flush=True)

    def _bytes(self) -> tuple[int, int]:
        return self.links.bytes_so_far() if self.links is not None else (0, 0)

    def _interface_sum(self, deltas: list[int]) -> int:
        """One count per node (its ranks see the same counters); -1 where KV did not cross a counted interface."""
        if self.links is None or not self.links.interfaces:
            return -1
        return sum(deltas[self.nodes.index(node)] for node in dict.fromkeys(self.nodes))


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
