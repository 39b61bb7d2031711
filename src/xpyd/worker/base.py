"""The loop that every worker runs: receive, move KV, step; and the stamps and rows that come of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from xpyd.clock import Clock
from xpyd.faults import FaultConfig
from xpyd.model.segment import Segment
from xpyd.placement import CLIENT_RANK, Role
from xpyd.records import CacheRow, StageRow, StepRow
from xpyd.request import Stage
from xpyd.run_dir import RowWriter
from xpyd.scheduler.base import NeverFits
from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.worker.engine import Engine, Output
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import (
    AnyMessage,
    Beat,
    Cancel,
    Cancelled,
    Emitted,
    EndBlock,
    Failed,
    Final,
    Gone,
    Step,
    Tokens,
)
from xpyd.worker.pulse import Outcast, Pulse

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
    faults: FaultConfig = field(default_factory=FaultConfig)
    role: Role = Role.CLIENT

    @property
    def who(self) -> str:
        """This rank in words, for messages to people."""
        return f"rank {self.rank} ({self.role})"

    def stamp(self, request_id: int, stage: Stage, t_ns: int | None = None, reason: str = "") -> None:
        t_ns = self.clock.now_ns() if t_ns is None else t_ns
        self.rows.write(StageRow(self.block, request_id, stage.value, self.rank, t_ns, reason))

    def emit(self, outputs: list[Output], emitted_ns: int) -> None:
        """One message to the client with all tokens of a step."""
        tokens = [Emitted(o.sequence.request_id, o.index, o.sampled.token, o.sampled.margin) for o in outputs]
        if tokens:
            self.mailbox.send(CLIENT_RANK, Tokens(emitted_ns, tokens))

    def fail(self, request_id: int, reason: str) -> None:
        """Tell the client that this request will not finish."""
        self.mailbox.send(CLIENT_RANK, Failed(request_id, f"{self.who}: {reason}"))

    def confirm(self, request_id: int, attempt: int, stage: str) -> None:
        """Tell the client that nothing is left here of a cancelled request; ``stage``: where it was."""
        self.mailbox.send(CLIENT_RANK, Cancelled(request_id, attempt, stage))


class Worker(ABC):
    """A rank with a model for the length of one block."""

    def __init__(self, engine: Engine, desk: Desk, drain_timeout_s: float) -> None:
        self.engine = engine
        self.desk = desk
        self._drain_timeout_s = drain_timeout_s
        self._begun: set[int] = set()  # requests whose prefill has begun
        self._num_preempted = 0  # since the last step that ran
        self._ending = False
        self._aborted = False
        self._gone: set[int] = set()  # lost ranks
        self._cancels: dict[int, int] = {}  # attempts to drop by request, once no step runs
        self._num_quarantined = engine.scheduler.num_quarantined  # when ``fail_stranded`` was last called
        self._pulse = Pulse(desk.mailbox, desk.rank, desk.faults)
        self._columns = (desk.block, desk.rank, desk.role.value)  # the first ones of every StepRow

    def run(self) -> None:
        """Serve until the client ends the block and nothing is left in flight; followers end with their leader."""
        try:
            self._serve()
        except BaseException as error:
            self._cut_off(type(error).__name__)
            raise
        if self._aborted:
            self._cut_off("the client ended the block")
        self.desk.mailbox.send_all(self.desk.followers, EndBlock(self._aborted))

    def _serve(self) -> None:
        deadline: float | None = None
        while not (self._ending and (self._aborted or self.quiet)):
            busy = self.receive()
            self._cancel_all()
            if self._ending:
                self.drop_orphans()
            busy |= self.move()
            if self.engine.scheduler.num_quarantined > self._num_quarantined:
                self._num_quarantined = self.engine.scheduler.num_quarantined
                self.fail_stranded()
            busy |= self.step()
            if not busy:
                self.desk.rows.flush_if_due()
                time.sleep(IDLE_SLEEP_S)
            if self._ending:
                deadline = deadline or time.monotonic() + self._drain_timeout_s
                if time.monotonic() > deadline:
                    raise WorkerError(f"{self.desk.who}: {self.unfinished()} after the block's end")

    def attend(self) -> None:
        """The block has ended here, and not yet everywhere: be heard, and hear who is lost. Raises as ``receive``."""
        self.receive()
        self._cancel_all()
        self.move()

    def receive(self) -> bool:
        """Take messages, and let the client hear of this rank. Raises ClientLost, Outcast."""
        busy = False
        for source, message in self.desk.mailbox.poll():
            busy = True
            self._pulse.heard(source)
            match message:
                case Beat():
                    pass
                case EndBlock():
                    self._ending, self._aborted = True, message.abort
                case Gone():
                    self._lose(message.ranks)
                case Cancel():
                    self._cancels[message.request_id] = message.attempt
                case _ if source not in self._gone:
                    self.handle(source, message)
        self._pulse.beat()
        return busy

    def step(self) -> bool:
        """Schedule, run, commit; False when there was nothing to run."""
        scheduler = self.engine.scheduler
        plan = scheduler.schedule()
        self._num_preempted += len(plan.preempted)
        if plan.empty:
            return False
        begin_ns = self.desk.clock.now_ns()
        if plan.prefills:  # else nobody begins, and nobody was given a place
            self._stamp_begins(plan, begin_ns)
            self._write_placed(begin_ns)
        self.before_run(plan)
        tell = self._tell if self.desk.followers else None
        outputs = self.engine.run(plan, self.on_layer, tell, self.between_layers)
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
            self.desk.fail(sequence.request_id, str(error))
            return False
        return True

    def fail_stranded(self) -> None:
        """Quarantine has shrunk the pool: tell the client which requests wait for more blocks than are left."""
        for request_id, reason in self.engine.scheduler.stranded().items():
            self.desk.fail(request_id, reason)

    def cancel(self, request_id: int, attempt: int) -> None:
        """Drop a request, and confirm it when its blocks are free; called between steps."""
        stage = self.stages().get(request_id, "not here")
        self.engine.scheduler.abort(request_id)
        self.desk.confirm(request_id, attempt, stage)

    def stages(self) -> dict[int, str]:
        """What every request that is here is doing here."""
        scheduler = self.engine.scheduler
        waiting = dict.fromkeys((s.request_id for s in scheduler.waiting), "waiting for a seat or blocks")
        return waiting | {s.request_id: "decoding" if s.decoding else "in prefill" for s in scheduler.running}

    def drop_peer(self, rank: int) -> None:  # noqa: B027 - only a rank that moves KV has peers
        """A rank is lost: nothing moves to or from it any more."""

    def drop_orphans(self) -> None:  # noqa: B027 - likewise
        """No request is left: what waits for a word of a lost rank need not wait any more."""

    @property
    def ledger_bytes(self) -> int:
        """KV bytes that the plans of incoming transfers promised; none where KV does not move."""
        return 0

    @property
    def aborted(self) -> bool:
        """The client ended the block with requests left."""
        return self._aborted

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
        """Progress KV transfers; True when something moved."""
        return False

    def before_run(self, plan: StepPlan) -> None:  # noqa: B027 - a hook that a role may leave as it is
        """Called between schedule and run."""

    def finals(self, plan: StepPlan) -> list[Final]:
        """What the followers may send once they have run this step; nothing where KV does not move."""
        return []

    def on_layer(self, layer: int) -> None:
        """Called when a layer's KV is in the pool."""
        self.between_layers()

    def between_layers(self) -> None:
        """Called between the layers of the model, and of a draft."""
        self._pulse.beat()  # a long step is no silence

    def _lose(self, ranks: list[int]) -> None:
        if self.desk.rank in ranks:
            raise Outcast(f"{self.desk.who} was silent, and the others go on without it")
        self.desk.rows.flush()  # whatever comes now, what was measured is kept
        self.desk.mailbox.give_up(ranks)
        for rank in set(ranks) - self._gone:
            self._gone.add(rank)
            self.drop_peer(rank)

    def _cancel_all(self) -> None:
        cancels, self._cancels = self._cancels, {}
        for request_id, attempt in cancels.items():
            self._begun.discard(request_id)
            self.cancel(request_id, attempt)

    def _cut_off(self, reason: str) -> None:
        """The block ends early: say for every request that is here how far it came."""
        for request_id, stage in self.stages().items():
            why = f"{self.desk.who}: {stage}; cut off: {reason}"
            self.desk.stamp(request_id, Stage.FAILED, reason=why)
        self.desk.rows.flush()

    def _tell(self, plan: StepPlan, segments: list[Segment]) -> None:
        """The followers run the same step: they wait for this rank, and it for them, at every sum over ranks."""
        self.desk.mailbox.send_all(self.desk.followers, Step(segments, self.finals(plan), self.engine.moves))

    def _stamp_begins(self, plan: StepPlan, begin_ns: int) -> None:
        for chunk in plan.prefills:
            sequence = chunk.sequence
            if not sequence.outputs and sequence.request_id not in self._begun:  # a recompute is no second begin
                self._begun.add(sequence.request_id)
                self.desk.stamp(sequence.request_id, Stage.PREFILL_BEGIN, begin_ns)

    def _write_placed(self, begin_ns: int) -> None:
        """What the prefix cache had of the sequences that were just admitted."""
        block_size = self.engine.scheduler.config.block_size
        for sequence in self.engine.scheduler.take_placed():
            self.desk.rows.write(
                CacheRow(
                    block=self.desk.block,
                    request_id=sequence.request_id,
                    rank=self.desk.rank,
                    role=self.desk.role.value,
                    t_ns=begin_ns,
                    num_tokens=sequence.num_tokens,
                    num_cached_tokens=sequence.num_cached,
                    num_host_tokens=sequence.num_promoted * block_size,
                    num_remote_tokens=min(sequence.num_cached, sequence.num_remote * block_size),
                    saved_bytes=0,
                )
            )
            sequence.num_remote = 0  # counted

    def _write_step(self, plan: StepPlan, begin_ns: int, end_ns: int) -> None:
        scheduler = self.engine.scheduler
        prefills, decodes = plan.prefills, plan.decodes
        row = StepRow(
            *self._columns,
            begin_ns,
            end_ns,
            sum([chunk.num_tokens for chunk in prefills]),
            len(prefills),
            len(decodes),
            sum([chunk.start for chunk in decodes]) + len(decodes),
            scheduler.num_free_blocks,
            scheduler.num_reserved_blocks,
            scheduler.num_waiting,
            self._num_preempted,
        )
        self.desk.rows.write(row)
        self._num_preempted = 0
        speculator = self.engine.speculator
        guessed = speculator.row(self.desk.block, self.desk.rank, begin_ns) if speculator is not None else None
        if guessed is not None:
            self.desk.rows.write(guessed)
