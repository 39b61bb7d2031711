"""One job of the soak on its ranks: a real session with a stand-in model, and ranks that fail in mid-transfer."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak.stand_in import PatternPool, PatternRunner, poison_what_is_freed
from benchmarks.soak.trial import Order, Outcome, write_outcomes
from xpyd.entry import Terminated, wait_for_turn
from xpyd.faults import EXIT_RANKS_LOST, ClientLost, FaultConfig
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.mpi import MPI
from xpyd.placement import CLIENT_RANK, Placement, PlacementConfig
from xpyd.records import DISAGGREGATED, LossRow, StageRow
from xpyd.request import Request, Stage
from xpyd.router import RouterConfig
from xpyd.run_dir import RunDir
from xpyd.scheduler.base import SchedulerConfig
from xpyd.transport.base import Ticket, Transport
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.session import Block, Session, Setup
from xpyd.worker.transfer_config import TransferConfig

MODEL = ModelSpec("stand-in", 4, 32, 4, 2, 32, 64, 1000)
BLOCK_SIZE, BLOCK_BYTES = 4, 32768  # real pieces on the wire, whatever the model says
PIECE_S = 1e-3  # a slow wire: hand-offs take long enough to be cut
IMPOSSIBLE = 9999  # the request id of one that fits no pool
DRAIN_S = 30.0


class StandInSession(Session):
    """A session whose runner needs no weights and no torch."""

    def _runner_in(self, placement: Placement) -> Any:
        ranks = placement.instance_of(self.rank).ranks
        if ranks not in self._runners:
            blocks, size = self.setup.scheduler.num_kv_blocks, self.setup.scheduler.block_size
            runner: Any = PatternRunner(PatternPool(self.spec.num_layers, blocks, size, BLOCK_BYTES))
            poison_what_is_freed(runner.cache)
            self._runners[ranks] = runner
        return self._runners[ranks]


class Trap:
    """Slows a rank's transport, and makes the rank fail after so many bytes of a block have gone through it."""

    def __init__(self, transport: Transport, folder: Path, rank: int, order: Order) -> None:
        self._transport, self._folder, self._rank, self._order = transport, folder, rank, order
        self._limit_bytes: int | None = None
        self._generator = np.random.default_rng((order.seed, rank))
        self._progress, self._send = transport.progress, transport.send
        transport.progress = self.progress  # type: ignore[method-assign]
        transport.send = self.send  # type: ignore[method-assign]

    def arm(self) -> None:
        """From a few pieces to several requests into the block."""
        num_pieces = int(self._generator.integers(3, 120))
        self._limit_bytes = self._moved() + num_pieces * BLOCK_BYTES

    def send(self, peer: int, span: Any, tag: int) -> Ticket:
        time.sleep(PIECE_S)
        return self._send(peer, span, tag)

    def progress(self) -> bool:
        moved = self._progress()
        if self._limit_bytes is not None and self._moved() >= self._limit_bytes:
            self._limit_bytes = None
            (self._folder / f"fault.{self._rank}").write_text(str(time.perf_counter_ns()))
            if self._order.fault != "cut":  # a link is cut by the driver, which waits for the file
                os.kill(os.getpid(), signal.SIGKILL if self._order.fault == "kill" else signal.SIGSTOP)
        return moved

    def _moved(self) -> int:
        return self._transport.sent_bytes + self._transport.received_bytes


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


class Stamps:
    """The stage rows and losses of the block that is being played, taken from the client's row writer."""

    def __init__(self, session: Session) -> None:
        self.stages: list[StageRow] = []
        self.losses: list[LossRow] = []
        write = session.rows.write

        def keep(row: Any) -> None:
            if isinstance(row, StageRow):
                self.stages.append(row)
            elif isinstance(row, LossRow):
                self.losses.append(row)
            write(row)

        session.rows.write = keep  # type: ignore[method-assign]

    def outcome(self, block: Block, victim: int, folder: Path) -> Outcome:
        """What became of the block's requests; forgets it."""
        ends = {row.request_id: row for row in self.stages if row.stage in (Stage.FINISHED, Stage.FAILED)}
        counts = Counter(row.stage for row in ends.values())
        explained = sum(row.stage == Stage.FINISHED or bool(row.reason) for row in ends.values())
        loss = next((row for row in self.losses if row.rank == victim), None)
        fault = folder / f"fault.{victim}"
        found = Outcome(
            block.number,
            victim,
            (loss.t_ns - int(fault.read_text())) / 1e9 if loss is not None and fault.exists() else -1.0,
            loss.reason if loss is not None else "",
            counts[Stage.FINISHED],
            counts[Stage.FAILED],
            sum(row.stage == Stage.RETRIED for row in self.stages),
            len(block.requests) - explained,
            sum(row.stage == Stage.FAILED and "its KV moves" in row.reason for row in ends.values()),
        )
        self.stages.clear()
        self.losses.clear()
        return found


def play(session: Session, order: Order, folder: Path) -> None:
    """Every block; the outcomes are on disk after each, as the job may end in any of them."""
    trap = Trap(session.links.transport, folder, session.rank, order) if session.links is not None else None
    stamps, outcomes = Stamps(session), list[Outcome]()
    for number, victim in enumerate(order.victims):
        if trap is not None and session.rank == victim:
            trap.arm()
        block = Block(number, number, DISAGGREGATED, requests_of(order, number), concurrency=6)
        try:
            session.play(block)
        finally:
            if session.rank == CLIENT_RANK:
                outcomes.append(stamps.outcome(block, victim, folder))
                write_outcomes(folder, outcomes)


def report_rank(session: Session, folder: Path) -> None:
    """What this rank checked, and which blocks it had to put aside."""
    runner: Any = session.runner
    quarantined = sum(len(blocks) for blocks in session._quarantine.values())
    content = {"checked": runner.num_checked if runner is not None else 0, "quarantined": quarantined}
    (folder / f"rank.{session.rank}.json").write_text(json.dumps(content))


def main() -> None:
    signal.signal(signal.SIGTERM, terminate)
    folder, order = Path(sys.argv[1]), Order.from_json(sys.argv[2])
    with StandInSession(setup_of(order), MPI.COMM_WORLD, RunDir(folder), lambda: False) as session:
        try:
            play(session, order, folder)
        except Terminated:
            session.rows.close()
            os._exit(128 + signal.SIGTERM)
        except ClientLost:
            session.rows.close()
            wait_for_turn(session.rank)
            raise
        report_rank(session, folder)
        lost = bool(session.crew.lost)
        session.crew.wait()
    if lost:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if session.rank == CLIENT_RANK:
            MPI.COMM_WORLD.Abort(EXIT_RANKS_LOST)
        time.sleep(DRAIN_S)


def terminate(number: int, frame: object) -> None:
    raise Terminated
