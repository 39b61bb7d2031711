"""A stretch: steps that only decode the same sequences, planned once.

While nothing is added, admitted or released and no sequence ends, a scheduler would plan the same decodes again, each a
token further. A stretch says so in a few comparisons a step, and looks at a sequence only where a block of it begins.
Until ``commit`` its sequences stay as they were when it began, but for their blocks: what was true some steps ago.
"""

from __future__ import annotations

import sys
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
        self._grown: list[tuple[int, int]] = []  # step and row of each block that the last ``take`` took
        self._limit = min(max_steps, *[each.max_output_tokens - len(each.outputs) for each in self.sequences])
        self._begins: list[list[int]] = [[] for _ in range(self._block_size)]  # rows by the step that begins a block
        for row, sequence in enumerate(self.sequences):
            self._begins[-sequence.num_computed % self._block_size].append(row)

    def take(self, most: int = 1, widest: int = sys.maxsize) -> int:
        """Take the next steps, ``most`` at most, and grow their block tables (``grown``): how many were taken.

        Fewer, or none, where the stretch ends, or a table would have more than ``widest`` blocks. Those that are not
        run are to be given back.
        """
        first, self._grown = self.num_steps, []
        if self._scheduler.num_changes != self._seen:
            return 0
        for step in range(first, min(self._limit, first + most)):
            rows = self._begins[step % self._block_size]
            if rows:
                if not all(self._grow(row, step, widest) for row in rows):
                    self.give_back(0)
                    break
                self._num_free = self._scheduler.num_free_blocks
            self.num_free_blocks.append(self._num_free)
            self.num_steps += 1
        return self.num_steps - first

    @property
    def grown(self) -> list[int]:
        """Rows whose block tables have got longer by the steps that were last taken."""
        return [row for _, row in self._grown]

    @property
    def over(self) -> bool:
        """The last step that it can take is taken: maybe a sequence ends with it."""
        return self.num_steps == self._limit

    def give_back(self, num_steps: int) -> None:
        """The last so many of those that were taken are not run after all."""
        self.num_steps -= num_steps
        del self.num_free_blocks[self.num_steps :]
        while self._grown and self._grown[-1][0] >= self.num_steps:
            _, row = self._grown.pop()
            self._scheduler._shrink(self.sequences[row])
        self._num_free = self._scheduler.num_free_blocks

    def _grow(self, row: int, step: int, widest: int) -> bool:
        """False where somebody has to be preempted for it, or it gets too wide."""
        sequence = self.sequences[row]
        num_blocks = len(sequence.block_table)
        if not self._scheduler._grow(sequence, step):
            return False
        if len(sequence.block_table) == num_blocks:
            return True
        self._grown.append((step, row))  # by one block, as a step is a token
        return num_blocks < widest

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
