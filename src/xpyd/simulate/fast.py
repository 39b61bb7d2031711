"""The real schedulers with their decode batch in a lump: the same decisions, without a turn for every token.

Policy stays where it is: ``fill_chunked`` and its siblings fill steps, the real base admits and reserves. What is
replaced is bookkeeping per decoding sequence. When blocks run out, the sequences are laid out and the real code chooses
whom to preempt. Tests hold both against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from xpyd.placement import Role
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.chunked import fill_chunked
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.registry import FILLS, Fill, build_scheduler
from xpyd.scheduler.sequence import Chunk, Sequence, StepPlan
from xpyd.simulate.lump import Lump
from xpyd.simulate.pool import CountedBlocks

NOTHING = StepPlan([], [], [])


class CountedScheduler(Scheduler):
    """A real policy, ``fill``, over blocks that are a number."""

    def __init__(self, config: SchedulerConfig, fill: Fill) -> None:
        super().__init__(replace(config, num_kv_blocks=1))  # its own pool lists every block, and is not used
        self.config = config
        self._pool = CountedBlocks(config.num_kv_blocks, config.block_size)
        self._blocks = self._pool
        self._fill = fill
        self._max_tokens = config.num_kv_blocks * config.block_size

    def schedule(self) -> StepPlan:
        return self._fill(self)

    def next_step(self) -> StepPlan:
        """As ``schedule``, without a look at what cannot have changed."""
        return self.schedule() if self._waiting or self._running else NOTHING

    def check_fits(self, request_id: int, num_input: int, num_output: int) -> None:
        if num_input + num_output - 1 > self._max_tokens:
            super().check_fits(request_id, num_input, num_output)


class PrefillOnlyScheduler(CountedScheduler):
    """Of an instance where every sequence ends with its first token: nobody decodes, and nobody grows."""

    def _plan_decodes(self) -> tuple[list[Chunk], list[Sequence]]:
        return [], []

    def _headroom(self) -> int:
        return 0


class LumpedScheduler(CountedScheduler):
    """Of the others: the lump holds the sequences that decode, ``_running`` those that compute prompts."""

    def __init__(self, config: SchedulerConfig, fill: Fill) -> None:
        super().__init__(config, fill)
        self.lump = Lump(config.block_size)
        self._decodes_alone = StepPlan([], self.lump.chunks, [])
        self._orders: dict[int, int] = {}  # when each running sequence was admitted, in this scheduler's count
        self._num_admitted = 0
        self._prepaid: set[int] = set()  # joined with the block that their next step needs: recomputed all but a token

    @property
    def num_running(self) -> int:
        return len(self._running) + len(self.lump.members)

    @property
    def can_admit(self) -> bool:
        return self.num_running < self.config.max_num_seqs

    @property
    def running(self) -> tuple[Sequence, ...]:
        return (*(member.sequence for member in self.lump.members.values()), *self._running)

    def num_steps(self) -> int:
        """Steps that the decode batch can run in one go, its blocks for the first one taken."""
        return self.lump.num_steps(self._blocks.num_free)

    def spare_blocks(self, num_steps: int) -> int:
        """Blocks that are free, whatever the batch takes in all but the first of so many steps, headroom left too."""
        growth = len(self.lump.members) * ((num_steps + self.config.block_size - 2) // self.config.block_size)
        return self._pool.count - growth - self._headroom()

    def next_step(self) -> StepPlan:
        """As ``schedule``, which is not asked where nothing but the batch is here and its blocks are free."""
        lump = self.lump
        growth = lump.phases[(lump.step + 1) % self.config.block_size]
        if self._waiting or self._running or growth > self._pool.count or self._prepaid:
            return self.schedule()
        self._pool.count -= growth
        return self._decodes_alone

    def advance(self, num_steps: int) -> None:
        """``num_steps`` steps of a stretch have ended, and the one after them has begun, with its blocks."""
        self._pool.count -= self.lump.growth(2, num_steps + 1)
        self.lump.advance(num_steps)

    def admit(self, sequence: Sequence) -> None:
        super().admit(sequence)
        self._running.remove(sequence)
        self.lump.join(sequence, self._next_order())

    def commit(self, plan: StepPlan, new_tokens: Mapping[int, int]) -> list[Sequence]:
        """As ever for prompts; of the decodes, one step ends here (those before it: ``advance``)."""
        finished = []
        if self.lump.members and plan.decodes:
            self.lump.advance(1)
            finished = self.lump.pop_finished()
        if not plan.prefills:
            return finished
        finished += super().commit(StepPlan(plan.prefills, [], []), new_tokens)
        for sequence in (chunk.sequence for chunk in plan.prefills if chunk.sequence.decoding):
            order = self._orders.pop(sequence.request_id)
            if not sequence.finished:
                self._running.remove(sequence)
                if len(sequence.block_table) > self._blocks.blocks_for(sequence.num_tokens - 1):
                    self._prepaid.add(sequence.request_id)
                self.lump.join(sequence, order)
        return finished

    def _next_admitted(self) -> Sequence | None:
        sequence = super()._next_admitted()
        if sequence is not None:
            self._orders[sequence.request_id] = self._next_order()
        return sequence

    def _plan_decodes(self) -> tuple[list[Chunk], list[Sequence]]:
        preempted: list[Sequence] = []
        growth = self.lump.growth(1, 1) - len(self._prepaid)
        if growth > self._pool.count:
            preempted = self._preempt()
        else:
            self._pool.count -= growth
            self._prepaid.clear()
        return self.lump.chunks, preempted

    def _preempt(self) -> list[Sequence]:
        """Lay the batch out and let the real code find blocks for this step; then lump the rest again."""
        members, computing = self.lump.take_all(), self._running
        orders = {member.sequence.request_id: member.order for member in members} | self._orders
        for member in members:
            if member.sequence.request_id in self._prepaid:
                member.sequence.block_table.append(0)
        self._prepaid.clear()
        laid_out = [member.sequence for member in members] + computing
        self._running = sorted(laid_out, key=lambda sequence: orders[sequence.request_id])
        _, preempted = super()._plan_decodes()
        left, self._running = self._running, []
        for sequence in left:
            if sequence.decoding:
                self.lump.join(sequence, orders[sequence.request_id])
            else:
                self._running.append(sequence)
        for sequence in preempted:
            self._orders.pop(sequence.request_id, None)
        return preempted

    def _seat_free(self) -> bool:
        return self.num_running + self._num_reserved < self.config.max_num_seqs

    def _headroom(self) -> int:
        return len(self.lump.members) + (super()._headroom() if self._running else self._num_reserved)

    def _next_order(self) -> int:
        self._num_admitted += 1
        return self._num_admitted


def simulated_scheduler(config: SchedulerConfig, role: Role, num_kv_blocks: int, fast: bool) -> Scheduler:
    """The scheduler of an instance: the real one, or with ``fast`` the real policy over counted blocks and a lump.

    A policy that is not in ``FILLS`` is always played as it is.
    """
    config = replace(config, num_kv_blocks=num_kv_blocks)
    if not fast or (role is not Role.DECODE and config.policy not in FILLS):
        return build_scheduler(config, role)
    if role is Role.PREFILL:
        return PrefillOnlyScheduler(config, FILLS[config.policy])
    return LumpedScheduler(config, fill_chunked if role is Role.DECODE else FILLS[config.policy])
