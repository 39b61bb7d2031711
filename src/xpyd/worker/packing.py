"""KV blocks into staging slots and out again: as they are, or through a codec. One interface for staged hand-offs."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.codec.cells import NO_CELLS, CellCodec
from xpyd.kv.staging import gather, scatter

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]  # the first byte of each cell, see kv.plan.Cells


class Packer(Protocol):
    """Cells of the registered buffer to and from the slot that begins at ``slot``."""

    def pack(self, cells: Offsets, slot: int) -> int:
        """Fill the slot; the bytes to send."""

    def unpack(self, cells: Offsets, slot: int) -> None:
        """Fill the cells from the bytes that have landed in the slot."""


class CopyPacker:
    """Cells as they are, ``cell_bytes`` each."""

    def __init__(self, buffer: Bytes, cell_bytes: int) -> None:
        self._buffer = buffer
        self._cell_bytes = cell_bytes

    def pack(self, cells: Offsets, slot: int) -> int:
        return gather(self._buffer, cells, self._cell_bytes, slot)

    def unpack(self, cells: Offsets, slot: int) -> None:
        scatter(self._buffer, cells, self._cell_bytes, slot)


class CodedPacker:
    """Cells through a codec of fixed rate. The sender names its ``last`` cells, see ``CellCodec.encode``."""

    def __init__(self, buffer: Bytes, codec: CellCodec, last: frozenset[int] = NO_CELLS, num_tokens: int = 0) -> None:
        self._buffer = buffer
        self._codec = codec
        self._last = last
        self._num_tokens = num_tokens

    def pack(self, cells: Offsets, slot: int) -> int:
        return self._codec.encode(cells, self._slot(cells, slot), self._last, self._num_tokens)

    def unpack(self, cells: Offsets, slot: int) -> None:
        self._codec.decode(self._slot(cells, slot), cells)

    def _slot(self, cells: Offsets, slot: int) -> Bytes:
        return self._buffer[slot : slot + len(cells) * self._codec.cell_bytes]
