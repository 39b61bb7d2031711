"""One simulated instance: its scheduler, the stretch of steps that it runs, and what each step yields."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from xpyd.placement import Role
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Chunk, Sequence, StepPlan
from xpyd.simulate.account import Account, Flight, Peaks
from xpyd.simulate.agenda import Event
from xpyd.simulate.costs import StepCosts, Stretch
from xpyd.simulate.fast import CountedScheduler, LumpedScheduler
from xpyd.simulate.links import Port

if TYPE_CHECKING:
    from xpyd.simulate.cluster import Cluster


class Instance(Event):
    """``number`` counts all instances, ``index`` those of its pool; ``rank`` is its leader's.

    What happens to it as an event is that its stretch ends.
    """

    def __init__(
        self, cluster: Cluster, number: int, index: int, role: Role, rank: int, width: int, costs: StepCosts
    ) -> None:
        super().__init__()
        self._cluster = cluster
        self.number = number
        self.index = index
        self.role = role
        self.hands_off = role in (Role.PREFILL, Role.HYBRID)
        self.rank = rank
        self.costs = costs
        self.port = Port(width)
        self.up = True
        self.landed: deque[Flight] = deque()  # decode: KV is here, waits for a seat or for the running step
        self.offers: deque[Flight] = deque()  # decode: waits for blocks
        self.cancels: list[Flight] = []  # to be dropped when the running step has ended

    def happen(self, now_ps: int) -> None:
        self._cluster.step_ends(self, now_ps)

    def begin_block(self, scheduler: Scheduler, account: Account) -> None:
        """An empty instance: at the block's begin, and after an outage."""
        self.scheduler = scheduler
        self.lumped = scheduler if isinstance(scheduler, LumpedScheduler) else None
        self._next_step = scheduler.next_step if isinstance(scheduler, CountedScheduler) else scheduler.schedule
        self.account = account
        self.flights: dict[int, Flight] = {}
        self.stretch: Stretch | None = None
        self.plan = StepPlan([], [], [])
        self.batch = 0
        self.landed.clear()
        self.offers.clear()
        self.cancels.clear()
        self._busy_ps = 0  # an idle worker does something else until then
        self._owed_ps = 0  # what it has to do beside steps when the stretch has ended
        self._done = 0  # steps of the stretch that have ended, as far as the scheduler was told
        self._told = 0  # as far as the account was: later, unless it wants every step
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
        plan = self._next_step()
        for sequence in plan.preempted:
            self._leave(self.flights[sequence.request_id])
            self.account.totals.num_preempted += 1
            self._num_preempted += 1
        batch = len(plan.decodes)
        if not batch and not plan.prefills:
            return False
        self.plan, self.batch = plan, batch
        self._done = self._told = self._context = 0
        costs, num_steps = self.costs, 1
        if batch and self.lumped is None:
            self._context = sum(chunk.sequence.num_tokens for chunk in plan.decodes)
        elif batch and self.lumped is not None:
            self._context = self.lumped.lump.context
            if not plan.prefills:
                num_steps = self.lumped.num_steps()
        first_ps = costs.base_ps + costs.seq_ps * batch + costs.token_ps * self._context
        if plan.prefills:
            chunks_ps = 0
            for chunk in plan.prefills:
                chunks_ps += costs.chunk_ps(chunk.num_tokens, chunk.start)
            first_ps += chunks_ps - min(costs.hidden_ps, chunks_ps)
        first_ps = first_ps if first_ps > 1 else 1
        if self._owed_ps or self._busy_ps > now_ps:
            first_ps += max(0, self._busy_ps - now_ps) + self._owed_ps
            self._owed_ps, num_steps = 0, 1
        self.stretch = Stretch(now_ps, first_ps, costs.token_ps * batch, num_steps)
        return True

    def spend(self, duration_ps: int, now_ps: int) -> int:
        """The worker is kept from its next step for so long; returns when it is through, if it begins now."""
        if self.stretch is not None:
            self._owed_ps += duration_ps
            return now_ps + duration_ps
        self._busy_ps = max(self._busy_ps, now_ps) + duration_ps
        return self._busy_ps

    def stop(self) -> int:
        """Nothing runs here any more; the step that was running is lost. Returns the tokens of the steps before it."""
        num_decoded = self._done * self.batch if self.stretch is not None else 0
        self.up = False
        self.stretch = None
        self.cancels.clear()
        return num_decoded

    def settle(self, now_ps: int) -> None:
        """Account for the steps that ended before now; what is left of the stretch goes on."""
        stretch = self.stretch
        if stretch is None or stretch.num_steps == 1:
            return
        ended = min(stretch.ended_before(now_ps), stretch.num_steps - 1)
        if ended > self._told:
            self._account(ended)
        if ended > self._done:
            self._advance(ended)

    def catch_up(self, now_ps: int) -> None:
        """Let the scheduler know of the steps that ended before now: which blocks are free. The account may wait."""
        stretch = self.stretch
        if self.account.with_steps:
            self.settle(now_ps)
        elif stretch is not None and stretch.num_steps > self._done + 1:
            ended = min(stretch.ended_before(now_ps), stretch.num_steps - 1)
            if ended > self._done:
                self._advance(ended)

    def has_ample(self, num_blocks: int) -> bool:
        """Whether so many blocks can be taken with no effect on the stretch, however much of it has ended.

        Never where every step has a row, which tells of the free blocks.
        """
        if self.stretch is None or self.account.with_steps or self.lumped is None:
            return False
        return self.lumped.spare_blocks(self.stretch.num_steps - self._done) >= num_blocks

    def cut(self, now_ps: int) -> bool:
        """End the stretch with the step that is running; False where that is so anyway."""
        stretch = self.stretch
        if stretch is None or stretch.num_steps == self._done + 1:
            return False
        if self.account.with_steps:
            self.settle(now_ps)
        num_steps = stretch.ended_before(now_ps) + 1
        if num_steps >= stretch.num_steps:
            return False
        stretch.num_steps = num_steps
        return True

    def part(self, now_ps: int) -> int:
        """Make the running step a stretch of its own; returns how many steps of the old one came before it."""
        self.cut(now_ps)
        stretch = self.stretch
        if stretch is None or stretch.num_steps == 1:
            return 0
        before = stretch.num_steps - 1
        if self._told < before:
            self._account(before)
        if self._done < before:
            self._advance(before)
        self._context += before * self.batch
        self.stretch = Stretch(stretch.begin_ps + stretch.after(before), stretch.step_ps(before), stretch.slope_ps, 1)
        self._done = self._told = 0
        return before

    def refit(self) -> bool:
        """Blocks were taken beside the stretch (caught up before): True where it has become shorter."""
        if self.stretch is None or self.stretch.num_steps == self._done + 1:
            return False
        assert self.lumped is not None
        num_steps = self._done + self.lumped.num_steps()
        shorter = num_steps < self.stretch.num_steps
        self.stretch.num_steps = min(num_steps, self.stretch.num_steps)
        return shorter

    def finish(self) -> tuple[list[Sequence], list[Sequence]]:
        """The stretch has ended: commit its last step. Returns the prompts that are computed, and whose decoding ended.

        A prompt whose first token is its last is in the first list alone.
        """
        stretch, plan = self.stretch, self.plan
        assert stretch is not None
        self._account(stretch.num_steps)
        if self._done < stretch.num_steps - 1:
            self._advance(stretch.num_steps - 1)
        self.stretch = None
        if self.lumped is not None and not plan.prefills:
            decoded = self.lumped.commit(plan, {})
            sampled: list[Sequence] = []
        else:
            tokens = {chunk.sequence.request_id: 0 for chunk in (*plan.prefills, *self._listed(plan))}
            sampled = [chunk.sequence for chunk in plan.prefills if chunk.samples]
            finished = self.scheduler.commit(plan, tokens)
            decoded = finished[: len(finished) - sum(sequence.finished for sequence in sampled)]
        for sequence in decoded:
            self._leave(self.flights[sequence.request_id])
        return sampled, decoded

    def join(self, flight: Flight) -> None:
        """A flight decodes from the next step on; its last token is out."""
        flight.in_batch = True
        self._fresh.append(flight)
        flight.since_step = self._step + 2  # the gap of the first step is its own
        if flight.num_seen < flight.num_tokens:
            self._replays.append(flight)
        if flight.recorded:
            self._recorded[flight.request_id] = flight

    def num_out(self, request_id: int) -> int:
        """Tokens that a sequence here has yielded."""
        if self.lumped is not None:
            member = self.lumped.lump.find(request_id)
            if member is not None:
                return self.lumped.lump.num_tokens(member) - len(member.sequence.prompt)
        sequence = self.scheduler.find(request_id)
        return 0 if sequence is None else len(sequence.outputs)

    def _listed(self, plan: StepPlan) -> list[Chunk]:
        """The decodes of a plan, one by one; none where they are a lump."""
        return plan.decodes if self.lumped is None else []

    def _advance(self, ended: int) -> None:
        """Steps of the stretch have ended, and the next one has begun."""
        assert self.lumped is not None
        self.lumped.advance(ended - self._done)
        self._done = ended

    def _account(self, ended: int) -> None:
        """Rows, gaps and tokens of the steps from ``_told`` to ``ended``."""
        stretch, told, account = self.stretch, self._told, self.account
        assert stretch is not None
        if account.with_steps:
            self._write_steps(stretch, ended)
        if self.batch:
            if told == 0:
                self._first_step(stretch.begin_ps + stretch.first_ps)
                told = 1
            if ended > told:
                account.totals.itl.add_steps(stretch, told, ended - 1, self.batch)
                self._step += ended - told
                self._peaks.push(self._step, stretch.step_ps(ended - 1))
            if self._recorded or self._replays:
                self._tokens(stretch, ended)
            self._decoded_ps = stretch.begin_ps + stretch.after(ended)
        self._told = ended

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
        for index in range(self._told, ended):
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
        for index in range(self._told, ended):
            begin_ps, end_ps = (stretch.begin_ps + stretch.after(n) for n in (index, index + 1))
            free = scheduler.num_free_blocks
            if index > self._done:
                assert self.lumped is not None
                free -= self.lumped.lump.growth(2, index - self._done + 1)
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
        longest_ps = self._peaks.since(flight.since_step)
        if longest_ps > flight.max_gap_ps:
            flight.max_gap_ps = longest_ps
        if flight in self._fresh:
            self._fresh.remove(flight)
        else:
            flight.last_ps = self._decoded_ps
        if self._replays and flight in self._replays:
            self._replays.remove(flight)
        if flight.recorded:
            self._recorded.pop(flight.request_id, None)

    @property
    def idle(self) -> bool:
        """Up, and no step runs."""
        return self.stretch is None and self.up
