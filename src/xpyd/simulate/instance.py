"""One simulated instance: its scheduler, the stretch of steps that it runs, and what each step yields."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from xpyd.placement import Role
from xpyd.scheduler.base import Scheduler, Sequence, StepPlan
from xpyd.simulate.account import Account, Flight, Peaks
from xpyd.simulate.costs import StepCosts, Stretch
from xpyd.simulate.fast import LumpedScheduler
from xpyd.simulate.links import Port


@dataclass(frozen=True, slots=True)
class Ended:
    """What a stretch yielded: prompts that are computed, sequences whose decoding ended, and all decode tokens."""

    plan: StepPlan
    sampled: list[Sequence]
    finished: list[Sequence]
    num_decoded: int


class Instance:
    """``number`` counts all instances, ``index`` those of its pool; ``rank`` is its leader's."""

    def __init__(self, number: int, index: int, role: Role, rank: int, width: int, costs: StepCosts) -> None:
        self.number = number
        self.index = index
        self.role = role
        self.rank = rank
        self.costs = costs
        self.port = Port(width)
        self.up = True
        self.version = 0  # of the stretch: an event of an older one is void
        self.landed: deque[Flight] = deque()  # decode: KV is here, waits for a seat or for the running step
        self.offers: deque[Flight] = deque()  # decode: waits for blocks
        self.cancels: list[Flight] = []  # to be dropped when the running step has ended

    def begin_block(self, scheduler: Scheduler, account: Account) -> None:
        """An empty instance: at the block's begin, and after an outage."""
        self.scheduler = scheduler
        self.account = account
        self.flights: dict[int, Flight] = {}
        self.stretch: Stretch | None = None
        self.plan = StepPlan([], [], [])
        self.batch = 0
        self.landed.clear()
        self.offers.clear()
        self.cancels.clear()
        self._done = 0  # steps of the stretch that have ended and are accounted for
        self._step = 0  # decode steps so far
        self._decoded_ps = -1  # when the last of them ended
        self._fresh: list[Flight] = []  # joined the batch since then
        self._recorded: dict[int, Flight] = {}  # in the batch, with rows of their own
        self._replays: list[Flight] = []  # in the batch, and not yet where an earlier attempt had come
        self._peaks = Peaks()
        self._num_preempted = 0

    def start(self, now_ps: int) -> bool:
        """Schedule and begin what comes of it; False where a stretch is running, or nothing can."""
        if self.stretch is not None or not self.up:
            return False
        plan = self.scheduler.schedule()
        for sequence in plan.preempted:
            self._leave(self.flights[sequence.request_id])
            self.account.totals.num_preempted += 1
            self._num_preempted += 1
        if plan.empty:
            return False
        self.plan, self.batch, self._done = plan, len(plan.decodes), 0
        costs, num_steps = self.costs, 1
        if isinstance(self.scheduler, LumpedScheduler):
            self._context = self.scheduler.lump.context if self.batch else 0
            if not plan.prefills:
                num_steps = self.scheduler.num_steps()
        else:
            self._context = sum(chunk.sequence.num_tokens for chunk in plan.decodes)
        first_ps = costs.base_ps + costs.seq_ps * self.batch + costs.token_ps * self._context
        for chunk in plan.prefills:
            first_ps += costs.chunk_ps(chunk.num_tokens, chunk.start)
        self.stretch = Stretch(now_ps, max(1, first_ps), costs.token_ps * self.batch, num_steps)
        return True

    def stop(self) -> int:
        """Nothing runs here any more; the step that was running is lost. Returns the tokens of the steps before it."""
        num_decoded = self._done * self.batch if self.stretch is not None else 0
        self.up = False
        self.stretch = None
        self.version += 1
        self.cancels.clear()
        return num_decoded

    def settle(self, now_ps: int) -> None:
        """Account for the steps that ended before now; what is left of the stretch goes on."""
        stretch = self.stretch
        if stretch is None or stretch.num_steps == 1:
            return
        ended = min(stretch.ended_before(now_ps), stretch.num_steps - 1)
        if ended > self._done:
            self._advance(ended)

    def cut(self, now_ps: int) -> bool:
        """End the stretch with the step that is running; False where that is so anyway."""
        self.settle(now_ps)
        if self.stretch is None or self.stretch.num_steps == self._done + 1:
            return False
        self.stretch.num_steps = self._done + 1
        return True

    def refit(self) -> bool:
        """Blocks were taken beside the stretch (settled before): True where it has become shorter."""
        if self.stretch is None or self.stretch.num_steps == self._done + 1:
            return False
        assert isinstance(self.scheduler, LumpedScheduler)
        num_steps = self._done + self.scheduler.num_steps()
        shorter = num_steps < self.stretch.num_steps
        self.stretch.num_steps = min(num_steps, self.stretch.num_steps)
        return shorter

    def finish(self) -> Ended:
        """The stretch has ended: commit its last step."""
        stretch, plan = self.stretch, self.plan
        assert stretch is not None
        if self._done < stretch.num_steps - 1:
            self._advance(stretch.num_steps - 1)
        self._account(stretch.num_steps)
        self.stretch = None
        tokens = {chunk.sequence.request_id: 0 for chunk in plan.prefills}
        if not isinstance(self.scheduler, LumpedScheduler):
            tokens |= {chunk.sequence.request_id: 0 for chunk in plan.decodes}
        sampled = [chunk.sequence for chunk in plan.prefills if chunk.samples]
        finished = self.scheduler.commit(plan, tokens)
        decoded = finished[: len(finished) - sum(sequence.finished for sequence in sampled)]
        for sequence in decoded:
            self._leave(self.flights[sequence.request_id])
        return Ended(plan, sampled, decoded, stretch.num_steps * self.batch)

    def join(self, flight: Flight) -> None:
        """A flight decodes from the next step on; its last token is out."""
        flight.in_batch = True
        self._fresh.append(flight)
        flight.since_step = self._step + 2  # the gap of the first step is its own
        if flight.num_seen < flight.num_tokens:
            self._replays.append(flight)
        if flight.recorded:
            self._recorded[flight.request.request_id] = flight

    def num_out(self, request_id: int) -> int:
        """Tokens that a sequence here has yielded."""
        if isinstance(self.scheduler, LumpedScheduler):
            member = self.scheduler.lump.members.get(request_id)
            if member is not None:
                return self.scheduler.lump.num_tokens(member) - len(member.sequence.prompt)
        sequence = self.scheduler.find(request_id)
        return 0 if sequence is None else len(sequence.outputs)

    def _advance(self, ended: int) -> None:
        """Steps of the stretch have ended, and the next one has begun."""
        assert isinstance(self.scheduler, LumpedScheduler)
        num_steps = ended - self._done
        self._account(ended)
        self.scheduler.advance(num_steps)
        self._done = ended

    def _account(self, ended: int) -> None:
        """Rows, gaps and tokens of the steps from ``_done`` to ``ended``."""
        stretch = self.stretch
        assert stretch is not None
        if self.account.with_steps:
            self._write_steps(stretch, ended)
        if self.batch:
            if self._done == 0:
                self._first_step(stretch.begin_ps + stretch.after(1))
            first = max(1, self._done)
            if ended > first:
                self.account.totals.itl.add_steps(stretch, first, ended - 1, self.batch)
                self._peaks.push(self._step + ended - first, stretch.step_ps(ended - 1))
                self._step += ended - first
            if self._recorded or self._replays:
                self._tokens(stretch, ended)
            self._decoded_ps = stretch.begin_ps + stretch.after(ended)

    def _first_step(self, end_ps: int) -> None:
        """The first decode step after something else: those who joined meanwhile have a gap of their own."""
        num_old = self.batch - len(self._fresh)
        self._step += 1
        if num_old:
            self.account.totals.itl.add(end_ps - self._decoded_ps, num_old)
            self._peaks.push(self._step, end_ps - self._decoded_ps)
        for flight in self._fresh:
            if flight.num_seen >= flight.num_tokens:
                self.account.gap(flight, end_ps)
        self._fresh.clear()

    def _tokens(self, stretch: Stretch, ended: int) -> None:
        for index in range(self._done, ended):
            time_ps = stretch.begin_ps + stretch.after(index + 1)
            for flight in list(self._replays):
                if flight.num_seen == flight.num_tokens:  # from here on it yields what is new
                    self.account.gap(flight, time_ps)
                    self._replays.remove(flight)
                elif not flight.recorded:
                    flight.num_seen += 1
            for flight in self._recorded.values():
                self.account.token(flight, self.rank, time_ps)

    def _write_steps(self, stretch: Stretch, ended: int) -> None:
        scheduler, prefills = self.scheduler, self.plan.prefills
        num_tokens = sum(chunk.num_tokens for chunk in prefills)
        for index in range(self._done, ended):
            begin_ps, end_ps = (stretch.begin_ps + stretch.after(n) for n in (index, index + 1))
            free = scheduler.num_free_blocks
            if index > self._done:
                assert isinstance(scheduler, LumpedScheduler)
                free -= scheduler.lump.growth(2, index - self._done + 1)
            context = self._context + index * self.batch
            waits = scheduler.num_reserved_blocks, scheduler.num_waiting, self._num_preempted
            counts = (num_tokens, len(prefills), self.batch, context, free, *waits)
            self.account.step(self.rank, self.role.value, begin_ps, end_ps, counts)
            self._num_preempted = 0

    def _leave(self, flight: Flight) -> None:
        """A flight leaves the batch: keep what the steps that it shared had for it."""
        if not flight.in_batch:
            return
        flight.in_batch = False
        flight.max_gap_ps = max(flight.max_gap_ps, self._peaks.since(flight.since_step))
        if flight in self._fresh:
            self._fresh.remove(flight)
        else:
            flight.last_ps = self._decoded_ps
        if flight in self._replays:
            self._replays.remove(flight)
        self._recorded.pop(flight.request.request_id, None)

    @property
    def idle(self) -> bool:
        """Up, and no step runs."""
        return self.stretch is None and self.up
