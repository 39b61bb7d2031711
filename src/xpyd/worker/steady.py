"""The steps of a stretch: nothing is done per sequence but in C, and where a block begins.

After a step of the model nothing of the worker is in the processor's caches, so that each object that is touched costs
a read from memory; what a step is made of is therefore kept from one to the next. Tokens leave after every step, as
from any other, and messages are looked at; as long as none comes, steps follow on one another in C, some milliseconds
at once. Sequences and rows are brought up to date later, many steps at once.
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
    """``step`` until it returns False or the stretch is over, then ``end``; ``rows`` at any time.

    ``most``: steps at once, where C tells their tokens.
    """

    def __init__(
        self, stretch: Stretch, follow: FollowOn, line: Line, columns: tuple[int, int, str], most: int
    ) -> None:
        self.stretch, self._follow, self._line = stretch, follow, line
        self._run = follow.step
        self._most = most if follow.tells else 1
        self._widest = follow.widest
        self._columns = columns
        self._num_rows = 0  # made so far

    def step(self) -> bool:
        """More steps, at least one; False where the next one is another, and nothing was run."""
        stretch = self.stretch
        num_taken = stretch.take(self._line.room(self._most), self._widest)
        if not num_taken:
            return False
        grown = stretch.grown
        self._resize(grown)
        num_steps = self._run(num_taken)
        if num_steps < 0:
            self._follow.out_of_memory()
        if not self._follow.tells:
            self._line.send()
        if num_steps < num_taken:
            stretch.give_back(num_taken - num_steps)
            self._resize(grown)
        return True

    def _resize(self, rows: list[int]) -> None:
        for row in rows:
            self._follow.resize(row, self.stretch.sequences[row].block_table)

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
    engine: Engine,
    desk: Desk,
    plan: StepPlan,
    outputs: list[Output],
    num_steps: int,
    most: int,
    on_layer: OnLayer | None,
) -> Steady | None:
    """What follows on a step that was just committed; None where the next one may be another, or C runs none of it.

    ``most`` steps at once; ``on_layer`` is called in each step as in any other.
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
    compiled = engine.runner.compiled
    follow = FollowOn(compiled, len(outputs), num_steps, message, line.tell, desk.clock, on_layer)
    return Steady(stretch, follow, line, desk.step_columns, most)
