"""A codec at work on a pool: cells are gathered and encoded at one end, decoded and scattered at the other.

A cell is one block of one layer, named by its first byte in the pool's buffer, as in ``kv.plan``; so any piece of a
hand-off is a run of cells, whatever the pool's order. Payloads are bytes in host memory, as transports know them.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from xpyd.kv.codec.base import BlockShape, Codec
from xpyd.kv.codec.config import CodecConfig
from xpyd.kv.codec.registry import build_codec

Bytes = NDArray[np.uint8]
Offsets = NDArray[np.int64]
NO_CELLS: frozenset[int] = frozenset()


class CellCodec:
    """Encodes from, and decodes into, ``pool``, through memory that it keeps.

    ``pool`` holds all cells in memory order, as ``KVCache.cells``: [num_cells, planes, block_size, num_kv_heads, size].
    """

    def __init__(self, config: CodecConfig, pool: torch.Tensor) -> None:
        _, num_planes, block_size, num_kv_heads, head_dim = pool.shape
        shape = BlockShape(block_size, num_kv_heads, head_dim, pool.dtype, num_planes)
        self.codec: Codec = build_codec(config, shape)
        self._strides = pool.stride()  # inside a cell tokens or heads may come first
        self._rows = pool.as_strided((len(pool), self.codec.shape.num_values), (self.codec.shape.num_values, 1))
        self._scratch = self._rows.new_empty((0, self.codec.shape.num_values))  # grows; fresh memory: page faults

    @property
    def cell_bytes(self) -> int:
        """Bytes of one encoded cell, where the codec's rate is fixed."""
        assert self.codec.fixed_rate, f"codec {self.codec.config.label} has no fixed rate"
        return self.codec.max_encoded_bytes(1)

    @torch.inference_mode()  # scratch made between a model's layers is an inference tensor: so is all that uses it
    def encode(self, cells: Offsets, out: Bytes, last: frozenset[int] = NO_CELLS, num_tokens: int = 0) -> int:
        """Write the encoded cells into the front of ``out``; the bytes written. Raises CodecError.

        ``last``: those cells, of a sequence's last block, that hold ``num_tokens`` of its tokens. What lies behind
        them is left of an earlier owner: it travels as zeros, so that no scale, and no token, depends on it.
        """
        rows, blocks = self._room(len(cells))
        torch.index_select(self._rows, 0, self._index(cells), out=rows)
        for row, cell in enumerate(cells.tolist() if last else ()):
            if cell in last:
                blocks[row, :, num_tokens:] = 0
        return self.codec.encode(blocks, torch.from_numpy(out))

    @torch.inference_mode()
    def decode(self, data: Bytes, cells: Offsets) -> None:
        """Fill the cells from exactly the bytes of one ``encode``. Raises CodecError."""
        rows, blocks = self._room(len(cells))
        self.codec.decode(torch.from_numpy(data), blocks)
        self._rows.index_copy_(0, self._index(cells), rows)

    @torch.inference_mode()
    def landed_checksums(self, cells: Offsets, last: frozenset[int], num_tokens: int) -> NDArray[np.uint32]:
        """CRC-32 of each cell as it will lie in the other pool: encoded and decoded here, the source left as it is."""
        payload = np.empty(self.codec.max_encoded_bytes(len(cells)), np.uint8)
        nbytes = self.encode(cells, payload, last, num_tokens)
        rows, blocks = self._room(len(cells))
        self.codec.decode(torch.from_numpy(payload[:nbytes]), blocks)
        return np.array([zlib.crc32(row) for row in rows.view(torch.uint8).numpy()], np.uint32)

    def _room(self, num_cells: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scratch for so many cells: rows of memory, and blocks [num_cells, planes, block_size, num_kv_heads, size]."""
        if len(self._scratch) < num_cells:
            self._scratch = self._rows.new_empty((num_cells, self.codec.shape.num_values))
        rows = self._scratch[:num_cells]
        return rows, rows.as_strided((num_cells, *self.codec.shape.dims), self._strides)

    def _index(self, cells: Offsets) -> torch.Tensor:
        return torch.from_numpy(cells // self.codec.shape.nbytes).to(self._rows.device)
