"""The loop that every worker runs: receive, move KV, step; and the stamps and rows that come of it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from xpyd.model.segment import Segment
from xpyd.records import CacheRow, StepRow
from xpyd.request import Stage
from xpyd.scheduler.base import NeverFits
from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.worker.desk import Desk
from xpyd.worker.engine import Engine
from xpyd.worker.errors import WorkerError
from xpyd.worker.messages import AnyMessage, Beat, Cancel, EndBlock, Final, Gone, Step
from xpyd.worker.output import Output
from xpyd.worker.pulse import Outcast, Pulse
from xpyd.worker.steady import MAX_STEPS, Steady, begin_steady

STRETCH_NS = 500_000_000  # of a stretch of steps, at most: its rows wait until it ends
AT_ONCE_NS = 50_000_000  # of the steps of one that C runs at once: a signal waits so long
IDLE_SLEEP_S = 50e-6  # an idle worker leaves its core to others, and adds at most this to a latency


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
        self._steady: Steady | None = None  # the stretch of steps that is under way
        self._step_ns, self._looks = 0, False  # what one of its steps takes, and whether it looks between layers
        self._columns = desk.step_columns

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
            if not self.turn():
                self.desk.rows.flush_if_due()
                time.sleep(IDLE_SLEEP_S)
            if self._ending:
                deadline = deadline or time.monotonic() + self._drain_timeout_s
                if time.monotonic() > deadline:
                    raise WorkerError(f"{self.desk.who}: {self.unfinished()} after the block's end")

    def turn(self) -> bool:
        """What the loop does once; False where there was nothing to do."""
        busy = self.receive()
        if self._cancels:
            self._cancel_all()
        if self._ending:
            self.drop_orphans()
        busy |= self.move()
        return self.step() or busy

    def attend(self) -> None:
        """The block has ended here, and not yet everywhere: be heard, and hear who is lost. Raises as ``receive``."""
        self.receive()
        if self._cancels:
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
        if time.monotonic() >= self._pulse.due_s:
            self._pulse.beat()
        return busy

    def step(self) -> bool:
        """Schedule, run, commit; False when there was nothing to run."""
        if self._steady is not None:
            if self._looks == self.looks_between_layers(self._step_ns) and self._steady.step():
                if self._steady.stretch.over:
                    self.settle()
                return True
            self.settle()
        scheduler = self.engine.scheduler
        if scheduler.num_quarantined > self._num_quarantined:
            self._num_quarantined = scheduler.num_quarantined
            self.fail_stranded()
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
        if not plan.prefills and not finished:
            self._steady = self._follow_on(plan, outputs, end_ns - begin_ns)
        return True

    def settle(self) -> None:
        """Bring sequences and rows up to date: they are as if each step of a stretch had been committed."""
        steady, self._steady = self._steady, None
        if steady is None:
            return
        self.desk.rows.write_all(steady.rows())
        for sequence in steady.end():
            self.engine.scheduler.release(sequence)
        self.desk.rows.flush_if_due()
        if steady.renew():
            self._steady = steady

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

    def looks_between_layers(self, step_ns: int) -> bool:
        """Whether ``between_layers`` has more to do than to be heard, in steps of decodes that take so long."""
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
        """Called between the layers of the model, and of a draft: a long step is no silence, and no deafness."""
        if time.monotonic() >= self._pulse.due_s:
            self.receive()

    def _lose(self, ranks: list[int]) -> None:
        if self.desk.rank in ranks:
            raise Outcast(f"{self.desk.who} was silent, and the others go on without it")
        self._flush()  # whatever comes now, what was measured is kept
        self.desk.mailbox.give_up(ranks)
        for rank in set(ranks) - self._gone:
            self._gone.add(rank)
            self.drop_peer(rank)

    def _cancel_all(self) -> None:
        self.settle()
        cancels, self._cancels = self._cancels, {}
        for request_id, attempt in cancels.items():
            self._begun.discard(request_id)
            self.cancel(request_id, attempt)

    def _cut_off(self, reason: str) -> None:
        """The block ends early: say for every request that is here how far it came."""
        for request_id, stage in self.stages().items():
            why = f"{self.desk.who}: {stage}; cut off: {reason}"
            self.desk.stamp(request_id, Stage.FAILED, reason=why)
        self._flush()

    def _follow_on(self, plan: StepPlan, outputs: list[Output], step_ns: int) -> Steady | None:
        """What follows on a step of decodes that took so long."""
        num_steps = min(MAX_STEPS, STRETCH_NS // step_ns)
        self._step_ns, self._looks = step_ns, self.looks_between_layers(step_ns)
        on_layer = self.on_layer if self._looks or not self._pulse.outlasts(step_ns) else None
        most = max(1, AT_ONCE_NS // step_ns) if self._pulse.outlasts(AT_ONCE_NS) else 1
        return begin_steady(self.engine, self.desk, plan, outputs, num_steps, most, on_layer)

    def _flush(self) -> None:
        if self._steady is not None:
            self.desk.rows.write_all(self._steady.rows())
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
