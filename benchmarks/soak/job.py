"""One job of the soak on its ranks: a real session with a stand-in model, and ranks that fail in mid-transfer."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak.stamps import Stamps
from benchmarks.soak.stand_in import PatternPool, PatternRunner, poison_what_is_freed
from benchmarks.soak.trap import BLOCK_BYTES, Trap, WaitCount
from benchmarks.soak.trial import Order, Outcome, RankReport, error_file, over_file, write_outcomes
from xpyd.entry import Terminated, leave_if_survived, leave_in_turn, wait_for_turn
from xpyd.faults import EXIT_RANKS_LOST, EXIT_REQUESTS_FAILED, ClientLost, FaultConfig
from xpyd.kv.entries import BlockMove
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.mpi import MPI, leave_together
from xpyd.placement import CLIENT_RANK, Instance, PlacementConfig
from xpyd.records import DISAGGREGATED
from xpyd.request import Request
from xpyd.router import RouterConfig
from xpyd.run_dir import RunDir
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.block import Block, Setup
from xpyd.worker.equipment import Equipment
from xpyd.worker.runners import Runners
from xpyd.worker.session import Session
from xpyd.worker.transfer_config import TransferConfig

MODEL = ModelSpec("stand-in", 4, 32, 4, 2, 32, 64, 1000)
BLOCK_SIZE = 4
IMPOSSIBLE = 9999  # the request id of one that fits no pool
DRAIN_S = 30.0
CONCURRENCY = 12


class NoTiers:
    """In place of the memory of other tiers, which is torch's: nothing is ever moved to or from any."""

    def __init__(self) -> None:
        self.moved_bytes: Counter[str] = Counter()

    def move(self, moves: Iterable[BlockMove]) -> None:
        assert not list(moves), "a block moved to another tier"


class StandInRunners(Runners):
    """No weights and no torch: what a request's KV must be is a pattern."""

    def _make(self, instance: Instance) -> Any:
        scheduler = self._setup.scheduler
        pool = PatternPool(self._spec.num_layers, scheduler.num_kv_blocks, scheduler.block_size, BLOCK_BYTES)
        poison_what_is_freed(pool)
        return PatternRunner(pool)


class StandInEquipment(Equipment):
    """The equipment of such runners."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.tiers.arenas = lambda runner, scheduler: NoTiers()  # type: ignore[method-assign, assignment, return-value]

    def _make_runners(self, comm: Any, num_threads: int) -> Runners:
        return StandInRunners(self.setup, comm, self.spec, num_threads, 0)


class StandInSession(Session):
    """A session whose workers have it."""

    def _make_equipment(self) -> Equipment:
        return StandInEquipment(self.setup, self.comm, self.spec, self.placement, 1)


def requests_of(order: Order, block: int) -> list[Request]:
    generator = np.random.default_rng((order.seed, block))
    lengths = generator.integers(8, 48, order.num_requests), generator.integers(2, 12, order.num_requests)
    seeds = [1000 * block + number for number in range(order.num_requests)]
    found = [
        Request(number, 0, int(input_len), int(output_len), seed=seed)
        for number, (input_len, output_len, seed) in enumerate(zip(*lengths, seeds, strict=True))
    ]
    if order.fault == "exhaust":
        found.append(Request(IMPOSSIBLE, 0, 40, order.num_kv_blocks * BLOCK_SIZE, seed=1))
    return found


def setup_of(order: Order) -> Setup:
    aborts = order.fault == "abort"
    return Setup(
        MODEL,
        PlacementConfig(num_prefill=order.num_prefill, num_decode=order.num_decode, allow_shared_node=True),
        SchedulerConfig("chunked", 4, 32, BLOCK_SIZE, order.num_kv_blocks),
        TransportConfig(order.transport),
        TransferConfig(mode=order.mode, direction=order.direction, pieces_in_flight=4, max_piece_bytes=BLOCK_BYTES),
        FabricConfig("soak", 10.0),
        SamplingConfig(),
        RouterConfig(),
        DRAIN_S,
        FaultConfig(
            order.policy,
            order.detect_s,
            order.beat_interval_s,
            request_timeout_s=0.15 if aborts else None,
            max_retries=3 if order.policy == "retry" else None,
        ),
    )


def play(session: Session, order: Order, folder: Path) -> bool:
    """Every block; the outcomes are on disk after each, as the job may end in any. Whether a request failed."""
    trap = Trap(session.links.transport, folder, session.rank, order) if session.links is not None else None
    if trap is not None and order.late:
        session.crew.gather = trap.before(session.crew.gather)  # type: ignore[method-assign]
    stamps, outcomes = Stamps(session, folder), list[Outcome]()
    for number, victims in enumerate(order.victims):
        if trap is not None and session.rank in victims:
            trap.arm()
        block = Block(number, number, DISAGGREGATED, requests_of(order, number), concurrency=CONCURRENCY)
        try:
            session.play(block)
        finally:
            if trap is not None:
                trap.disarm()
            if session.rank == CLIENT_RANK:
                outcomes.append(stamps.outcome(block, victims))
                write_outcomes(folder, outcomes)
    return bool(session.bcast(any(outcome.num_failed for outcome in outcomes)))


def report_rank(session: Session, folder: Path, waits: WaitCount) -> None:
    """What this rank checked, and which blocks it had to put aside; that none is held, every block has checked."""
    if session.equipment is not None:
        runner: Any = session.equipment.runner
        quarantined = sum(len(blocks) for blocks in session.equipment.quarantine.values())
        mine = RankReport(session.rank, runner.num_checked, quarantined, waits.num_waits)
        (folder / f"rank.{session.rank}.json").write_text(json.dumps(asdict(mine)))


def main() -> None:
    signal.signal(signal.SIGTERM, terminate)
    folder, order = Path(sys.argv[1]), Order.from_json(sys.argv[2])
    waits = WaitCount()
    with StandInSession(setup_of(order), MPI.COMM_WORLD, RunDir(folder), lambda: False) as session:
        try:
            failed = play(session, order, folder)
        except Terminated:
            session.rows.close()
            os._exit(128 + signal.SIGTERM)
        except ClientLost:
            session.rows.close()
            wait_for_turn(session.rank)
            leave_if_survived()
            raise
        except Exception:  # with ULFM the others would go on, and nobody would know
            error_file(folder, session.rank).write_text(traceback.format_exc())
            raise
        report_rank(session, folder, waits)
        lost = bool(session.crew.lost)
        session.crew.wait()
    if lost:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if session.rank == CLIENT_RANK:
            over_file(folder).touch()
            MPI.COMM_WORLD.Abort(EXIT_RANKS_LOST)
        leave_in_turn(session.rank)
    leave_together(EXIT_REQUESTS_FAILED if failed else 0)


def terminate(number: int, frame: object) -> None:
    raise Terminated
