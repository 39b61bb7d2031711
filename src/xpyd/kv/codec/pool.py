"""A codec at work on a pool: blocks of a table are gathered and encoded at one end, decoded and scattered at the other.

Payloads are plain bytes in host memory, as registered staging buffers and transports know them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from xpyd.kv.codec.base import BlockShape, Codec


def shape_of(pool: torch.Tensor) -> BlockShape:
    """The blocks of a pool that reads as [num_layers, num_blocks, 2, block_size, num_kv_heads, head_dim]."""
    block_size, num_kv_heads, head_dim = pool.shape[3:]
    return BlockShape(block_size, num_kv_heads, head_dim, pool.dtype)


Bytes = NDArray[np.uint8]


class PoolCodec:
    """Encodes from, and decodes into, one layer of ``pool`` at a time, through memory that it keeps."""

    def __init__(self, codec: Codec, pool: torch.Tensor) -> None:
        assert shape_of(pool) == codec.shape, "the codec was built for the blocks of another pool"
        self.codec = codec
        self._pool = pool
        self._blocks = pool.new_empty((0, *codec.shape.dims))  # grows; fresh memory costs page faults

    def encode(self, layer: int, table: Sequence[int], num_tokens: int, out: Bytes) -> int:
        """Write ``layer`` of the blocks of ``table`` into the front of ``out``; the bytes written.

        What lies in the last block behind the sequence's ``num_tokens`` tokens is left of an earlier owner: it travels
        as zeros, so that no scale, and no token, depends on it. Raises CodecError.
        """
        blocks = self._scratch(len(table))
        torch.index_select(self._pool[layer], 0, self._index(table), out=blocks)
        used = num_tokens - (len(table) - 1) * self.codec.shape.block_size
        assert 0 < used <= self.codec.shape.block_size, f"{num_tokens} tokens in {len(table)} blocks"
        blocks[-1, :, used:] = 0
        return self.codec.encode(blocks, torch.from_numpy(out))

    def decode(self, data: Bytes, layer: int, table: Sequence[int]) -> None:
        """Fill ``layer`` of the blocks of ``table`` from exactly the bytes of one ``encode``. Raises CodecError."""
        blocks = self._scratch(len(table))
        self.codec.decode(torch.from_numpy(data), blocks)
        self._pool[layer].index_copy_(0, self._index(table), blocks)

    def _scratch(self, num_blocks: int) -> torch.Tensor:
        if len(self._blocks) < num_blocks:
            self._blocks = self._pool.new_empty((num_blocks, *self.codec.shape.dims))
        return self._blocks[:num_blocks]

    def _index(self, table: Sequence[int]) -> torch.Tensor:
        return torch.tensor(table, dtype=torch.long, device=self._pool.device)
