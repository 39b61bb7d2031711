"""The paged KV cache: one preallocated pool of blocks, as a tensor for the model and as plain bytes for transports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout
from xpyd.model.spec import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class KVCache:
    """``pool`` has shape [num_layers, num_blocks, 2 (K, V), block_size, num_kv_heads, head_dim].

    A slot is one token's place in a layer: ``block * block_size + offset``.
    """

    def __init__(self, spec: ModelSpec, num_blocks: int, block_size: int, device: str = "cpu") -> None:
        shape = (spec.num_layers, num_blocks, 2, block_size, spec.num_kv_heads, spec.head_dim)
        self.pool = torch.zeros(shape, dtype=DTYPES[spec.dtype], device=device)
        self._read = self.pool.new_empty((0, *shape[3:]))  # grows; fresh memory for every layer costs page faults
        self.block_size = block_size
        self.layout = PoolLayout(spec.num_layers, num_blocks, spec.block_bytes(block_size))
        assert self.layout.nbytes == self.pool.nbytes, "the layout describes the pool byte for byte"

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """All bytes of the pool, shape [nbytes], without a copy. Host memory only."""
        view: NDArray[np.uint8] = self.pool.view(-1).view(torch.uint8).numpy()
        return view

    def slots(self, table: Sequence[int], start: int, num_tokens: int) -> list[int]:
        """The slots of tokens [start, start + num_tokens) of a sequence with this block table."""
        size = self.block_size
        return [table[position // size] * size + position % size for position in range(start, start + num_tokens)]

    def write(self, layer: int, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Store ``k`` and ``v``, shape [num_tokens, num_kv_heads, head_dim], at ``slots``, shape [num_tokens]."""
        blocks, offsets = slots // self.block_size, slots % self.block_size
        self.pool[layer, blocks, 0, offsets] = k
        self.pool[layer, blocks, 1, offsets] = v

    def read(self, layer: int, tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of ``tables`` [..., num_blocks]: each [..., num_blocks * block_size, num_kv_heads, head_dim].

        They are copies in one buffer that the next read reuses: use them before it.
        """
        halves = self.pool[layer].flatten(0, 1)  # a view: K of block 0, V of block 0, K of block 1, ...
        rows = torch.stack((2 * tables, 2 * tables + 1)).flatten()
        if self._read.shape[0] < len(rows):
            self._read = halves.new_empty((len(rows), *halves.shape[1:]))
        copied = self._read[: len(rows)]
        # index_select copies whole blocks; indexing with a tensor copies element by element, many times slower.
        torch.index_select(halves, 0, rows, out=copied)
        k, v = copied.view(2, *tables.shape[:-1], -1, *halves.shape[2:])
        return k, v
