"""What a step runs of one sequence. Plain data: it is also what a leader tells its followers."""

from __future__ import annotations

import msgspec


class Segment(msgspec.Struct, frozen=True):  # made for every sequence of a step: a dataclass takes ten times as long
    """Tokens of one sequence to run in this step, from position ``start`` on.

    ``samples``: the last of them yields the request's ``index``-th output token, drawn with ``seed``.
    """

    tokens: list[int]
    start: int
    block_table: list[int]
    seed: int
    index: int
    samples: bool

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    @property
    def is_decode(self) -> bool:
        """One token behind a context: it runs in the batched decode path, whatever it is for."""
        return len(self.tokens) == 1 and self.start > 0
