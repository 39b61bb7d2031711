"""The worker of every role: an engine, and the ends of the hand-off that the role has.

Colocated: none. Prefill: a source. Decode: a destination. Hybrid: both; a request whose ``Submit`` names no peer is
served here from its first token to its last, the others are handed off once their prompt is computed.
"""

from __future__ import annotations

import time

from xpyd.placement import Role
from xpyd.request import Stage
from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.units import NS_PER_S
from xpyd.worker.base import Worker
from xpyd.worker.desk import Desk
from xpyd.worker.destination import DestinationEnd
from xpyd.worker.end import End
from xpyd.worker.engine import Engine
from xpyd.worker.messages import AnyMessage, Final, Submit, unpack_prompt
from xpyd.worker.mover import Mover
from xpyd.worker.output import Output
from xpyd.worker.pool import PoolEnd
from xpyd.worker.source import SourceEnd

SHORT_STEP_NS = 5_000_000  # so long a message may wait for a step to end,
LOOK_NS = 2_000_000  # and so long within a longer one, with no hand-off open


class ServingWorker(Worker):
    """``mover`` is needed where there is an end."""

    def __init__(
        self,
        engine: Engine,
        desk: Desk,
        drain_timeout_s: float,
        mover: Mover | None = None,
        source: SourceEnd | None = None,
        destination: DestinationEnd | None = None,
        pool: PoolEnd | None = None,
    ) -> None:
        super().__init__(engine, desk, drain_timeout_s)
        self._mover = mover
        self._source = source
        self._destination = destination
        self.pool = pool
        self._ends: list[End] = [end for end in (source, destination, pool) if end is not None]
        # Whether an end may have something open. Messages and prompts open it: the steps of a stretch need not ask.
        self._open = False
        self._look_due_s = 0.0  # when messages are to be looked at within a step

    def handle(self, source: int, message: AnyMessage) -> None:
        self._open = bool(self._ends)
        if isinstance(message, Submit):
            self._take(message)
        elif not any(end.handle(source, message) for end in self._ends):
            cancelled = self._mover.cancelled if self._mover is not None else {}
            assert getattr(message, "request_id", None) in cancelled, (
                f"rank {source} sent {type(message).__name__} of a hand-off that {self.desk.who} does not know"
            )

    def _take(self, submit: Submit) -> None:
        """Queue a prompt; it moves on where a peer decodes it, and there is anything to decode."""
        prompt = unpack_prompt(submit.prompt)
        moves = submit.peer >= 0 and submit.output_len > 1
        num_outputs = 1 if moves else submit.output_len
        sequence = Sequence(submit.request_id, prompt, num_outputs, seed=submit.seed, priority=submit.priority)

        def queue() -> None:
            self._queue(submit, sequence, moves)

        if self.pool is None or not self.pool.want(sequence, queue):
            queue()

    def _queue(self, submit: Submit, sequence: Sequence, moves: bool) -> None:
        if self.add(sequence) and moves:
            assert self._source is not None, (
                f"request {submit.request_id} cannot move on from a {self.desk.role} worker"
            )
            self._source.take(submit, len(sequence.prompt))

    def move(self) -> bool:
        if not self._ends or (self._steady is not None and not self._open):
            return False
        if self._ending and self.pool is not None and super().quiet:
            self.pool.close()
        busy = [end for end in self._ends if not end.quiet]  # to progress UCX for nothing costs 1 % of a short step
        moved = any([end.move() for end in busy])  # noqa: C419 - every end, whatever the first one did
        self._open = any(not end.quiet for end in busy)
        return moved

    def looks_between_layers(self, step_ns: int) -> bool:
        """While a hand-off is open; with none a message may wait for a short step, of which a look is a part."""
        return self._open or (step_ns > SHORT_STEP_NS and self._expects)

    def before_run(self, plan: StepPlan) -> None:
        self._put_look_off()
        if self._source is not None:
            self._source.before_run(plan)
            self._open |= not self._source.quiet

    def finals(self, plan: StepPlan) -> list[Final]:
        return self._source.finals(plan) if self._source is not None else []

    def on_layer(self, layer: int) -> None:
        if self._source is not None:
            self._source.layer_done(layer)
            self._open |= not self._source.quiet
        self.between_layers()

    def between_layers(self) -> None:
        """Messages and KV move, and a long step is no silence. With nothing open a message may wait.

        A while where one is expected, else for the step to end: a look takes 60 us, as nothing of it is in the caches.
        """
        if not self._open and (not self._expects or time.monotonic() < self._look_due_s):
            super().between_layers()
            return
        self._put_look_off()
        self.receive()
        for end in self._ends:
            if not end.quiet:  # else there is nothing to progress, and a layer is short
                end.between_layers()

    def committed(self, outputs: list[Output], finished: list[Sequence], end_ns: int) -> None:
        moving = self._source.moving(outputs) if self._source is not None else []
        self._stamp_ends(outputs, moving, end_ns)
        if self._source is not None:  # first of all: what has not left by now is exposed
            self._source.computed(moving)
            self._open |= not self._source.quiet
        here = [o for o in outputs if o not in moving]
        self.desk.emit(outputs if self._source is not None and self._source.emits_first else here, end_ns)
        for output in moving:
            assert self._source is not None
            self._source.send_first(output, end_ns)
        gone = {output.sequence.request_id for output in moving}  # these keep their blocks until they have moved
        for sequence in finished:
            if sequence.request_id not in gone:
                self.engine.scheduler.release(sequence)

    def cancel(self, request_id: int, attempt: int) -> None:
        self._open = bool(self._ends)
        if self._mover is not None:
            self._mover.cancelled[request_id] = attempt
        if not any(end.cancel(request_id, attempt) for end in self._ends):
            super().cancel(request_id, attempt)

    def fail_stranded(self) -> None:
        super().fail_stranded()
        if self._destination is not None:
            self._destination.fail_stranded()

    def drop_peer(self, rank: int) -> None:
        self._open = bool(self._ends)
        if self._mover is not None:
            self._mover.drop(rank)

    def drop_orphans(self) -> None:
        if self._source is not None:
            self._source.drop_orphans()

    @property
    def ledger_bytes(self) -> int:
        return sum(end.ledger_bytes for end in (self._destination, self.pool) if end is not None)

    @property
    def quiet(self) -> bool:
        return super().quiet and all(end.quiet for end in self._ends)

    def stages(self) -> dict[int, str]:
        found = super().stages()
        for end in self._ends:
            found |= end.stages()
        return found

    def unfinished(self) -> str:
        return ", ".join([super().unfinished(), *(end.unfinished() for end in self._ends)])

    @property
    def _expects(self) -> bool:
        """Whether a message may come that should not wait for a long step to end."""
        return any(end.expects for end in self._ends)

    def _put_look_off(self) -> None:
        self._look_due_s = time.monotonic() + LOOK_NS / NS_PER_S

    def _stamp_ends(self, outputs: list[Output], moving: list[Output], end_ns: int) -> None:
        for output in outputs:
            if output.index > 0:
                continue
            self.desk.stamp(output.sequence.request_id, Stage.PREFILL_END, end_ns)
            if output not in moving and self.desk.role is not Role.PREFILL:
                # In the decode batch from here on: what stalls it now is interference.
                self.desk.stamp(output.sequence.request_id, Stage.DECODE_ADMIT, end_ns)
