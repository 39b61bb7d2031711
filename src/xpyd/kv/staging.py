"""Staging: many small blocks are gathered into few large pieces, sent, and scattered again where they land.

Worth it where a piece costs more on the wire than two copies do (see kv/coalesce). The staging memory lies behind the
pool in the registered buffer; a transfer borrows a few slots of it, so that its size bounds nothing but how many
transfers are staged at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import Cells, split_parts


class Slots:
    """The staging memory as slots of equal size, lent to transfers; named by their first byte in the buffer."""

    def __init__(self, first_byte: int, slot_bytes: int, num_bytes: int) -> None:
        self._free = [first_byte + i * slot_bytes for i in range(num_bytes // slot_bytes)]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """``count`` slots, or None (and none taken) where fewer are free."""
        if count > len(self._free):
            return None
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def give_back(self, slots: Sequence[int]) -> None:
        assert not set(slots) & set(self._free), "a slot was given back twice"
        self._free.extend(slots)


@dataclass(frozen=True)
class StagedPlan:
    """Like ``kv.plan.Plan``, but a piece is a number of cells that travel through a slot at each end.

    ``cell_bytes`` is what a cell takes there, on the wire as well: encoded, where a codec is used.
    """

    pieces: list[Cells]
    part_ends: list[int]
    cell_bytes: int

    @property
    def nbytes(self) -> int:
        return self.num_cells * self.cell_bytes

    @property
    def num_cells(self) -> int:
        return sum(len(cells.source) for cells in self.pieces)


def plan_staged(
    layout: PoolLayout,
    source: Sequence[int],
    destination: Sequence[int],
    slot_bytes: int,
    blocks_per_part: int | None = None,
    cell_bytes: int | None = None,
    num_here: int = 0,
) -> StagedPlan:
    """The cells of each part in pieces that fill a slot. ``slot_bytes`` holds one block of one layer at least.

    ``cell_bytes``: what such a block takes in a slot, where a codec changes that. ``num_here`` as in ``plan_request``.
    """
    cell_bytes = cell_bytes or layout.block_bytes
    per_piece = slot_bytes // cell_bytes
    assert per_piece, f"a slot of {slot_bytes} bytes holds no block of {cell_bytes} bytes"
    pieces: list[Cells] = []
    part_ends = []
    for cells in split_parts(layout, source, destination, blocks_per_part, num_here):
        for begin in range(0, len(cells.source), per_piece):
            pieces.append(Cells(*(offsets[begin : begin + per_piece] for offsets in cells)))
        part_ends.append(len(pieces))
    return StagedPlan(pieces, part_ends, cell_bytes)


def gather(buffer: NDArray[np.uint8], cells: NDArray[np.int64], cell_bytes: int, slot: int) -> int:
    """Copy the cells that begin at these bytes of ``buffer`` into ``slot``, one after the other; returns the bytes."""
    nbytes = len(cells) * cell_bytes
    landing = buffer[slot : slot + nbytes].reshape(-1, cell_bytes)
    np.take(_as_cells(buffer, slot, cell_bytes), cells // cell_bytes, axis=0, out=landing, mode="clip")
    return nbytes


def scatter(buffer: NDArray[np.uint8], cells: NDArray[np.int64], cell_bytes: int, slot: int) -> None:
    """Copy what lies in ``slot`` to the cells that begin at these bytes of ``buffer``."""
    landed = buffer[slot : slot + len(cells) * cell_bytes].reshape(-1, cell_bytes)
    _as_cells(buffer, slot, cell_bytes)[cells // cell_bytes] = landed


def _as_cells(buffer: NDArray[np.uint8], end: int, cell_bytes: int) -> NDArray[np.uint8]:
    """The pool as rows of one cell: it lies before the slots, and every cell begins at a multiple of its size."""
    return buffer[: end // cell_bytes * cell_bytes].reshape(-1, cell_bytes)
