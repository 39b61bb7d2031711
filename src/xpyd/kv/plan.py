"""From two block tables to the spans that must move: neighbours are merged, long runs are cut into pieces.

Both ranks make the same plan from the same two tables, so a piece needs no description on the wire but its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout, Span

Offsets = NDArray[np.int64]


class Cells(NamedTuple):
    """Blocks of layers, one after the other, by their first byte at both ends; shape [num_cells] each."""

    source: Offsets
    destination: Offsets


@dataclass(frozen=True)
class Plan:
    """The pieces of one hand-off in the order they leave: ``source[i]`` goes to ``destination[i]``, of equal length.

    A *part* becomes final at once: a layer, a prompt chunk, or everything. ``part_ends[p]`` is the number of pieces of
    parts 0 to p: as many may leave once part p is computed.
    """

    source: list[Span]
    destination: list[Span]
    part_ends: list[int]

    @property
    def nbytes(self) -> int:
        return sum(span.nbytes for span in self.source)


def plan_request(
    layout: PoolLayout,
    source: Sequence[int],
    destination: Sequence[int],
    max_piece_bytes: int,
    blocks_per_part: int | None = None,
    num_here: int = 0,
) -> Plan:
    """Runs of memory that are contiguous at both ends, cut at ``max_piece_bytes``, part after part.

    A part is one layer of all blocks, or all layers of ``blocks_per_part`` blocks where that is given. The first
    ``num_here`` blocks do not move; a part of these alone is empty.
    """
    parts = split_parts(layout, source, destination, blocks_per_part, num_here)
    return merge(parts, layout.block_bytes, max_piece_bytes)


def merge(parts: Iterable[Cells], cell_bytes: int, max_piece_bytes: int) -> Plan:
    """The plan that moves every cell of every part: neighbours at both ends become one piece, long runs several."""
    plan = Plan([], [], [])
    for cells in parts:
        for start, landing, nbytes in _runs(cells, cell_bytes):
            for begin in range(0, nbytes, max_piece_bytes):
                length = min(max_piece_bytes, nbytes - begin)
                plan.source.append(Span(start + begin, length))
                plan.destination.append(Span(landing + begin, length))
        plan.part_ends.append(len(plan.source))
    return plan


def split_parts(
    layout: PoolLayout,
    source: Sequence[int],
    destination: Sequence[int],
    blocks_per_part: int | None,
    num_here: int = 0,
) -> Iterator[Cells]:
    """The cells of each part, in the order of the pool's memory where the tables allow it."""
    assert len(source) == len(destination), "both ends hold the same number of blocks"
    layers = np.arange(layout.num_layers)
    tables = np.asarray(source, np.int64), np.asarray(destination, np.int64)
    if blocks_per_part is None:
        for layer in layers:
            yield Cells(*(_offsets(layout, layers[layer : layer + 1], table[num_here:]) for table in tables))
        return
    for begin in range(0, len(source), blocks_per_part):
        chunk = slice(max(begin, num_here), max(begin + blocks_per_part, num_here))
        yield Cells(*(_offsets(layout, layers, table[chunk]) for table in tables))


def _offsets(layout: PoolLayout, layers: NDArray[np.int64], blocks: Offsets) -> Offsets:
    grid = layers[:, None] * layout.layer_stride + blocks[None, :] * layout.block_stride
    return (grid.T if layout.blocks_first else grid).ravel()


def _runs(cells: Cells, cell_bytes: int) -> Iterator[tuple[int, int, int]]:
    """(first source byte, first destination byte, bytes) of each stretch that is contiguous at both ends."""
    breaks = (np.diff(cells.source) != cell_bytes) | (np.diff(cells.destination) != cell_bytes)
    starts = np.concatenate(([0] * bool(len(cells.source)), np.flatnonzero(breaks) + 1, [len(cells.source)]))
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield int(cells.source[begin]), int(cells.destination[begin]), (end - begin) * cell_bytes
