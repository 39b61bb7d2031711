"""The steps of a stretch: nothing is done per sequence but in C, and where a block begins.

After a step of the model nothing of the worker is in the processor's caches, so that each object that is touched costs
a read from memory; what a step is made of is therefore kept from one to the next. Tokens leave after every step, as
from any other; sequences and rows are brought up to date later, many steps at once.
"""

from __future__ import annotations

import sys

from xpyd.model.follow import FollowOn
from xpyd.placement import CLIENT_RANK
from xpyd.records import StepRow
from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.scheduler.stretch import Stretch, begin_stretch
from xpyd.worker.desk import Desk, emitted
from xpyd.worker.engine import Engine, OnLayer
from xpyd.worker.line import Line
from xpyd.worker.messages import Tokens
from xpyd.worker.output import Output

MAX_STEPS = 128  # bringing so many up to date at once takes less than a step


class Steady:
    """``step`` until it returns False or the stretch is over, then ``end``; ``rows`` at any time."""

    def __init__(self, stretch: Stretch, follow: FollowOn, line: Line, columns: tuple[int, int, str]) -> None:
        self.stretch, self._follow, self._line = stretch, follow, line
        self._run = follow.step
        self._columns = columns
        self._num_rows = 0  # made so far

    def step(self) -> bool:
        """One more step; False where the next one is another, and nothing was run."""
        if not self._line.free():
            return False
        grown = self.stretch.take()
        if grown is None or (grown and not self._lengthen(grown)):
            return False
        if self._run():
            self._follow.out_of_memory()
        self._line.send()
        return True

    def _lengthen(self, rows: list[int]) -> bool:
        sequences = self.stretch.sequences
        return all(self._follow.lengthen(row, sequences[row].block_table) for row in rows)

    def end(self) -> list[Sequence]:
        """Bring the sequences up to date; returns those that are finished."""
        return self.stretch.commit(self._follow.tokens)

    def renew(self) -> bool:
        """After ``end``: whether the same sequences go on, by another stretch."""
        stretch = self.stretch.again()
        if stretch is None:
            return False
        self.stretch, self._num_rows = stretch, 0
        self._follow.restart()
        return True

    def rows(self) -> list[StepRow]:
        """Of the steps since the last time."""
        stretch, stamps, first = self.stretch, self._follow.stamps, self._num_rows
        num_seqs, waiting, reserved = len(stretch.sequences), stretch.num_waiting, stretch.num_reserved_blocks
        block, rank, role = self._columns
        self._num_rows = len(stamps) // 2
        contexts = range(stretch.num_kv_tokens + (first + 1) * num_seqs, sys.maxsize, num_seqs)
        begins, ends = stamps[2 * first :: 2], stamps[2 * first + 1 :: 2]
        columns = zip(begins, ends, contexts, stretch.num_free_blocks[first:], strict=False)  # contexts never end
        return [
            StepRow(block, rank, role, begin_ns, end_ns, 0, 0, num_seqs, context, num_free, reserved, waiting, 0)
            for begin_ns, end_ns, context, num_free in columns
        ]


def begin_steady(
    engine: Engine, desk: Desk, plan: StepPlan, outputs: list[Output], num_steps: int, on_layer: OnLayer | None
) -> Steady | None:
    """What follows on a step that was just committed; None where the next one may be another, or C runs none of it.

    ``on_layer`` is called in each step as in any other.
    """
    if not engine.repeats or desk.followers:
        return None
    stretch = begin_stretch(engine.scheduler, plan, num_steps)
    if stretch is None:
        return None
    line = desk.mailbox.line(CLIENT_RANK, Tokens.of(0, map(emitted, outputs)))
    if line is None:
        return None
    message = line.address + line.num_bytes - Tokens.num_bytes(len(outputs))  # it ends with what C writes
    follow = engine.runner.follow_on(len(outputs), num_steps, message, desk.clock, on_layer)
    return Steady(stretch, follow, line, desk.step_columns)
