"""What a rank keeps for a whole run: model and pool, transport, mailbox, rows; and how it plays one block.

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
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from xpyd.clock import Clock, synchronise
from xpyd.dispatch import Dispatch, HybridDispatch, KvMap, PoolDispatch
from xpyd.economics.scenario import Calibration, Scenario
from xpyd.faults import EXIT_RANKS_LOST, RanksLost
from xpyd.hybrid import HybridConfig, HybridPolicy
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.mpi import leave_job, survives_ends
from xpyd.placement import CLIENT_RANK, Placement, Role, make_hybrid, node_names, place
from xpyd.records import HYBRID, SPLIT_ARMS, BlockRow, LossRow, RequestRow
from xpyd.run_dir import RowWriter, RunDir
from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker.affinity import pin_cores, sharpen_sleeps
from xpyd.worker.block import Block, Setup
from xpyd.worker.client import Client, Played
from xpyd.worker.crew import Crew
from xpyd.worker.desk import Desk
from xpyd.worker.errors import WorkerError
from xpyd.worker.links import Links
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.piece_costs import measure_piece_costs
from xpyd.worker.pulse import Outcast
from xpyd.worker.remote_link import measure_remote_link

if TYPE_CHECKING:  # torch, which takes seconds to import: see _make_equipment
    from xpyd.model.runner import ModelRunner
    from xpyd.worker.base import Worker
    from xpyd.worker.equipment import Equipment
    from xpyd.worker.follower import Follower


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
        self.equipment = None if self.rank == CLIENT_RANK else self._make_equipment()
        self._wait_for_models()
        self.links = self._connect()
        gc.freeze()  # libraries and weights stay: walking them again takes 0.3 s before each block

    @property
    def runner(self) -> ModelRunner | None:
        """This rank's shard of the model in the configured placement; None at the client."""
        return None if self.equipment is None else self.equipment.runner

    def _make_equipment(self) -> Equipment:
        from xpyd.worker.equipment import Equipment  # here alone: the client imports no torch

        return Equipment(self.setup, self.comm, self.spec, self.placement, self.cores.num_threads)

    def _connect(self) -> Links | None:
        """The transport, where KV moves between ranks, and what is to be measured of it. Collective."""
        setup, equipment, cache = self.setup, self.equipment, self.runner.cache if self.runner is not None else None
        shares = setup.scheduler.num_remote_blocks > 0
        if setup.placement.num_colocated and not shares:
            return None
        buffer, unit_bytes = (cache.buffer, cache.layout.block_bytes) if cache is not None else (None, 0)
        links = Links(setup.transport, setup.fabric, self.comm, self.placement, buffer, unit_bytes, shares)
        remote, piece_costs = None, None
        if shares and setup.scheduler.fetch == "cheaper":
            shelf = equipment.shelf(self.placement) if equipment is not None else None
            remote = measure_remote_link(self.comm, self.placement, links.transport, shelf, setup.transfer)
        if setup.transfer.staging == "auto":
            piece_costs = measure_piece_costs(
                self.comm, self.placement, links.transport, cache, setup.transfer, setup.fabric.rate_gbps
            )
        if equipment is not None:
            equipment.connect(links.transport, remote, piece_costs)
        return links

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
        if self.equipment is not None:
            self.equipment.prepare(placement, block)  # before any clock runs
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
        part: Client | Worker | Follower
        try:
            if self.equipment is None:
                part = self._client(block, placement)
                played = part.play(block.requests, block.concurrency)
            else:
                part = self.equipment.worker(placement, block, partial(self._desk, block))
                self.equipment.serve(part, placement)
        finally:
            gc.enable()
        self._close_block(block, part, played, before)
        return played

    def rehearse(self, block: Block) -> list[Any] | None:
        """Play a warm-up block; rank 0 gets the rows that the ranks would have written one by one. Collective."""
        assert block.number < 0, "rows of others are written"
        self.rows.overheard = []
        self.play(block)
        rows, self.rows.overheard = self.rows.overheard, None
        gathered = self.crew.gather(rows)
        return None if gathered is None else [row for each in gathered for row in each or []]

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
        elif kind is None and not self.crew.lost:
            self._mailbox.close()
            if self.links is not None:
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
        self.rows.sync(part.attend)  # before the block's row says that all of them are there
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
        self.rows.sync()
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
