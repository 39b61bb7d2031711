"""Checksums of KV per layer and block, taken on both sides of the wire: a transfer is proven, not believed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout


def checksums(buffer: NDArray[np.uint8], layout: PoolLayout, table: Sequence[int]) -> NDArray[np.uint32]:
    """CRC-32 of each layer's part of each block of ``table``, shape [num_layers, len(table)], in table order."""
    found = np.empty((layout.num_layers, len(table)), np.uint32)
    for layer in range(layout.num_layers):
        for i, block in enumerate(table):
            begin = layout.offset(layer, block)
            found[layer, i] = zlib.crc32(buffer[begin : begin + layout.block_bytes].data)
    return found


def mismatches(expected: NDArray[np.uint32], found: NDArray[np.uint32]) -> list[tuple[int, int]]:
    """Every (layer, index in the block table) whose checksums differ."""
    return [(int(layer), int(index)) for layer, index in np.argwhere(expected != found)]
