"""A stretch: steps that only decode the same sequences, planned once.

While nothing is added, admitted or released and no sequence ends, a scheduler would plan the same decodes again, each a
token further. A stretch says so in a few comparisons a step, and looks at a sequence only where a block of it begins.
Until ``commit`` its sequences stay as they were when it began, but for their blocks: what was true some steps ago.
"""

from __future__ import annotations

from collections.abc import MutableSequence

from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Sequence, StepPlan


class Stretch:
    """``plan``: the step that was just committed, of all running sequences. At most ``max_steps`` follow on it."""

    def __init__(self, scheduler: Scheduler, plan: StepPlan, max_steps: int) -> None:
        self._scheduler, self._plan, self._max_steps = scheduler, plan, max_steps
        self._seen = scheduler.num_changes
        self._num_free = scheduler.num_free_blocks
        self._block_size = scheduler.config.block_size
        self.sequences = [chunk.sequence for chunk in plan.decodes]
        self.num_kv_tokens = sum([sequence.num_computed for sequence in self.sequences])  # before its first step
        self.num_reserved_blocks = scheduler.num_reserved_blocks
        self.num_waiting = scheduler.num_waiting
        self.num_free_blocks: list[int] = []  # in each step
        self.num_steps = 0  # taken
        self.over = False  # the last step that it can take is taken: maybe a sequence ends with it
        self._limit = min(max_steps, *[each.max_output_tokens - len(each.outputs) for each in self.sequences])
        self._begins: list[list[int]] = [[] for _ in range(self._block_size)]  # rows by the step that begins a block
        for row, sequence in enumerate(self.sequences):
            self._begins[-sequence.num_computed % self._block_size].append(row)

    def take(self) -> list[int] | None:
        """Take the next step: the rows whose block table has grown for it; None where the stretch ends before it."""
        if self.over or self._scheduler.num_changes != self._seen:
            return None
        rows = self._begins[self.num_steps % self._block_size]
        for row in rows:
            if not self._scheduler._grow(self.sequences[row], self.num_steps):
                return None  # somebody has to be preempted
        if rows:
            self._num_free = self._scheduler.num_free_blocks
        self.num_free_blocks.append(self._num_free)
        self.num_steps += 1
        self.over = self.num_steps == self._limit
        return rows

    def again(self) -> Stretch | None:
        """After ``commit``: what follows on it in turn; None where the next step may be another one."""
        if self._scheduler.num_changes != self._seen or len(self.sequences) != self._scheduler.num_running:
            return None
        return Stretch(self._scheduler, self._plan, self._max_steps) if self.over else None

    def commit(self, tokens: MutableSequence[int]) -> list[Sequence]:
        """Record the steps that were run; ``tokens``: those of each, in the order of the sequences.

        Returns the sequences that are finished, as ``Scheduler.commit`` does.
        """
        finished = []
        for row, sequence in enumerate(self.sequences):
            outputs = tokens[row :: len(self.sequences)]
            sequence.outputs += outputs
            sequence.num_computed += len(outputs)
            if sequence.finished:
                self._scheduler._running.remove(sequence)
                finished.append(sequence)
        return finished


def begin_stretch(scheduler: Scheduler, plan: StepPlan, max_steps: int) -> Stretch | None:
    """What follows on a ``plan`` that was just committed; None where the next step may be another one.

    Not beside a prefix cache: a block that fills up may change what is admitted.
    """
    if not scheduler.plans_again or scheduler.config.prefix_cache or plan.prefills or max_steps < 1:
        return None
    if not plan.decodes or len(plan.decodes) != scheduler.num_running:
        return None
    return Stretch(scheduler, plan, max_steps)
