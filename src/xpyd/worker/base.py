"""The loop that every worker runs: receive, move KV, step; and the stamps and rows that come of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from xpyd.clock import Clock
from xpyd.model.segment import Segment
from xpyd.placement import CLIENT_RANK, Role
from xpyd.records import StageRow, StepRow
from xpyd.request import Stage
from xpyd.run_dir import RowWriter
from xpyd.scheduler.base import NeverFits, Sequence, StepPlan
from xpyd.worker.engine import Engine, Output
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import AnyMessage, Emitted, EndBlock, Failed, Final, Step, Tokens

IDLE_SLEEP_S = 50e-6  # an idle worker leaves its core to others, and adds at most this to a latency


class WorkerError(RuntimeError):
    """A worker cannot go on; the message names rank, peer, request and stage."""


@dataclass(frozen=True)
class Desk:
    """What a rank needs to talk and to write: the same for every role, made once per block."""

    rank: int
    block: int
    mailbox: Mailbox
    rows: RowWriter
    clock: Clock
    followers: tuple[int, ...] = ()  # the other ranks of this rank's instance, where it leads one

    def stamp(self, request_id: int, stage: Stage, t_ns: int | None = None, reason: str = "") -> None:
        t_ns = self.clock.now_ns() if t_ns is None else t_ns
        self.rows.write(StageRow(self.block, request_id, stage.value, self.rank, t_ns, reason))


class Worker(ABC):
    """A rank with a model for the length of one block."""

    role: ClassVar[Role]

    def __init__(self, engine: Engine, desk: Desk, drain_timeout_s: float) -> None:
        self.engine = engine
        self.desk = desk
        self.ledger_bytes = 0  # KV bytes that the plans of incoming transfers promised
        self._drain_timeout_s = drain_timeout_s
        self._begun: set[int] = set()  # requests whose prefill has begun
        self._num_preempted = 0  # since the last step that ran
        self._ending = False
        self._aborted = False

    def run(self) -> None:
        """Serve until the client ends the block and nothing is left in flight; followers end with their leader."""
        deadline: float | None = None
        while not (self._ending and (self._aborted or self.quiet)):
            busy = self.receive()
            busy |= self.move()
            busy |= self.step()
            if not busy:
                self.desk.rows.flush_if_due()
                time.sleep(IDLE_SLEEP_S)
            if self._ending:
                deadline = deadline or time.monotonic() + self._drain_timeout_s
                if time.monotonic() > deadline:
                    raise WorkerError(f"rank {self.desk.rank} ({self.role}): {self.unfinished()} after the block's end")
        self.desk.mailbox.send_all(self.desk.followers, EndBlock(self._aborted))

    def receive(self) -> bool:
        busy = False
        for source, message in self.desk.mailbox.poll():
            busy = True
            if isinstance(message, EndBlock):
                self._ending, self._aborted = True, message.abort
            else:
                self.handle(source, message)
        return busy

    def step(self) -> bool:
        """Schedule, run, commit; False when there was nothing to run."""
        scheduler = self.engine.scheduler
        plan = scheduler.schedule()
        self._num_preempted += len(plan.preempted)
        if plan.empty:
            return False
        begin_ns = self.desk.clock.now_ns()
        self._stamp_begins(plan, begin_ns)
        self.before_run(plan)
        outputs = self.engine.run(plan, self.on_layer, self._tell if self.desk.followers else None)
        end_ns = self.desk.clock.now_ns()
        self._write_step(plan, begin_ns, end_ns)
        finished = self.engine.commit(plan, outputs)
        self.committed(outputs, finished, end_ns)
        self.desk.rows.flush_if_due()
        return True

    def add(self, sequence: Sequence) -> bool:
        """Queue a request; tells the client when it can never fit."""
        try:
            self.engine.scheduler.add(sequence)
        except NeverFits as error:
            self.fail(sequence.request_id, str(error))
            return False
        return True

    def fail(self, request_id: int, reason: str) -> None:
        self.desk.mailbox.send(CLIENT_RANK, Failed(request_id, f"rank {self.desk.rank} ({self.role}): {reason}"))

    def emit(self, outputs: list[Output], emitted_ns: int) -> None:
        """One message to the client with all tokens of a step."""
        tokens = [Emitted(o.sequence.request_id, o.index, o.sampled.token, o.sampled.margin) for o in outputs]
        if tokens:
            self.desk.mailbox.send(CLIENT_RANK, Tokens(emitted_ns, tokens))

    @property
    def quiet(self) -> bool:
        """Nothing queued, running or in flight."""
        scheduler = self.engine.scheduler
        return scheduler.num_waiting == 0 and scheduler.num_running == 0

    def unfinished(self) -> str:
        scheduler = self.engine.scheduler
        return f"{scheduler.num_waiting} waiting and {scheduler.num_running} running requests"

    @abstractmethod
    def handle(self, source: int, message: AnyMessage) -> None:
        """React to one message."""

    @abstractmethod
    def committed(self, outputs: list[Output], finished: list[Sequence], end_ns: int) -> None:
        """React to the tokens of a step."""

    def move(self) -> bool:
        """Progress KV transfers; True when something moved. A colocated worker has none."""
        return False

    def before_run(self, plan: StepPlan) -> None:  # noqa: B027 - a hook that a role may leave as it is
        """Called between schedule and run."""

    def finals(self, plan: StepPlan) -> list[Final]:
        """What the followers may send once they have run this step; nothing where KV does not move."""
        return []

    def on_layer(self, layer: int) -> None:  # noqa: B027
        """Called when a layer's KV is in the pool."""

    def _tell(self, plan: StepPlan, segments: list[Segment]) -> None:
        """The followers run the same step: they wait for this rank, and it for them, at every sum over ranks."""
        self.desk.mailbox.send_all(self.desk.followers, Step(segments, self.finals(plan)))

    def _stamp_begins(self, plan: StepPlan, begin_ns: int) -> None:
        for chunk in plan.prefills:
            sequence = chunk.sequence
            if not sequence.outputs and sequence.request_id not in self._begun:  # a recompute is no second begin
                self._begun.add(sequence.request_id)
                self.desk.stamp(sequence.request_id, Stage.PREFILL_BEGIN, begin_ns)

    def _write_step(self, plan: StepPlan, begin_ns: int, end_ns: int) -> None:
        scheduler = self.engine.scheduler
        self.desk.rows.write(
            StepRow(
                block=self.desk.block,
                rank=self.desk.rank,
                role=self.role.value,
                begin_ns=begin_ns,
                end_ns=end_ns,
                num_prefill_tokens=sum(chunk.num_tokens for chunk in plan.prefills),
                num_prefill_seqs=len(plan.prefills),
                num_decode_seqs=len(plan.decodes),
                num_context_tokens=sum(chunk.sequence.num_tokens for chunk in plan.decodes),
                num_free_kv_blocks=scheduler.num_free_blocks,
                num_reserved_kv_blocks=scheduler.num_reserved_blocks,
                num_waiting=scheduler.num_waiting,
                num_preempted=self._num_preempted,
            )
        )
        self._num_preempted = 0
