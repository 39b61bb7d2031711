"""Steps that follow on a compiled one of decodes alone: each runs the tokens that the one before it drew.

C packs them in place, keeps what they drew, and writes it into the message that tells it (``xpyd_book``). So a step
touches nothing per sequence in Python: after a step of the model none of that is in a cache.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from functools import partial

from xpyd.clock import Clock
from xpyd.model.compiled import CompiledSteps


class FollowOn:
    """At most ``num_steps``, of ``compiled``, whose last step was one of decodes; no other step may come in between.

    ``message``: the address of the stamp and the records (``struct emitted``) that are written after each step.
    ``tell``: a function of C that is called after each step, and what it takes (``xpyd_again``).
    ``clock``: its stamps are this one's. ``on_layer`` is called as in any other step, and nothing is told then.

    ``step`` takes a number of steps to run, at most, and returns how many were; -1: ``out_of_memory``.
    """

    def __init__(
        self,
        compiled: CompiledSteps,
        num_rows: int,
        num_steps: int,
        message: int,
        tell: tuple[int, int] | None,
        clock: Clock,
        on_layer: Callable[[int], None] | None,
    ) -> None:
        assert compiled.only_decodes, "the last step was none of decodes alone"
        self._compiled, self._clock, self._on_layer = compiled, clock, on_layer
        self._num_rows = num_rows
        self._history = array("q", bytes(8 * num_steps * num_rows))
        self._stamps = array("q", bytes(16 * num_steps))
        self._ledger = compiled.ledger(self._history, self._stamps, message, clock.offset_ns)
        self._at = ctypes.c_void_p(ctypes.addressof(self._ledger))
        self.tells = tell is not None and on_layer is None
        again = partial(compiled.kernels.xpyd_again, self._at, *(tell or (None, None)))
        self.step: Callable[[int], int] = again if on_layer is None else self._by_layers
        self.out_of_memory = compiled.out_of_memory
        compiled.kernels.xpyd_follow(self._at)

    def _by_layers(self, most: int) -> int:
        """One step, whatever ``most`` is."""
        assert self._on_layer is not None
        begin_ns = self._clock.now_ns()
        self._compiled.run_again(self._on_layer)
        self._compiled.kernels.xpyd_book(self._at, begin_ns, self._clock.now_ns())
        return 1

    @property
    def widest(self) -> int:
        """What a block table may grow to."""
        return self._compiled.tables.width

    def resize(self, row: int, table: list[int]) -> None:
        """The block table of a sequence has got longer, or shorter."""
        self._compiled.tables.resize(row, table)

    def restart(self) -> None:
        """Forget the steps that were booked: ``num_steps`` more may follow."""
        self._ledger.num_steps = 0

    @property
    def tokens(self) -> array[int]:
        """Of all steps that were booked, [num_steps, num_rows]."""
        return self._history[: self._num_rows * self._ledger.num_steps]

    @property
    def stamps(self) -> array[int]:
        """Begin and end of each of them, ns."""
        return self._stamps[: 2 * self._ledger.num_steps]
