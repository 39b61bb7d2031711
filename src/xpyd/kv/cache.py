"""The paged KV cache: one preallocated pool of blocks, as a tensor for the model and as plain bytes for transports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from xpyd import native
from xpyd.kv.layout import PoolLayout, PoolOrder
from xpyd.model.spec import ModelSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class KVCache:
    """``pool`` reads as [num_layers, num_blocks, planes, block_size, num_kv_heads, kv_head_dim], whatever its order is.

    Planes are K and V, or with latent attention the one vector that stands for both. A slot is one token's place in a
    layer: ``block * block_size + offset``. ``staging_bytes`` more lie behind the pool in the same registered memory,
    for transfers that gather their blocks first.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        device: str = "cpu",
        order: PoolOrder | None = None,
        staging_bytes: int = 0,
    ) -> None:
        self.order = order or PoolOrder()
        self.block_size = block_size
        self.layout = PoolLayout(spec.num_layers, num_blocks, spec.block_bytes(block_size), self.order.blocks_first)
        outer = (num_blocks, spec.num_layers) if self.order.blocks_first else (spec.num_layers, num_blocks)
        inner = (spec.num_kv_heads, block_size) if self.order.heads_first else (block_size, spec.num_kv_heads)
        dtype = DTYPES[spec.dtype]
        num_items = self.layout.nbytes // dtype.itemsize
        self._memory = torch.empty(num_items + staging_bytes // dtype.itemsize, dtype=dtype, device=device)
        if self._memory.is_cpu:
            native.use_huge_pages(self._memory.data_ptr(), self._memory.nbytes)
        self._memory.zero_()
        stored = self._memory[:num_items].view(*outer, spec.kv_planes, *inner, spec.kv_head_dim)
        assert stored.nbytes == self.layout.nbytes, "the layout describes the pool byte for byte"
        blocks_last = stored.transpose(0, 1) if self.order.blocks_first else stored
        self.pool = blocks_last.transpose(3, 4) if self.order.heads_first else blocks_last
        self._num_planes = spec.kv_planes
        self._strides = [stride * dtype.itemsize for stride in self.pool.stride()]  # in bytes
        self._address = self.pool.data_ptr()
        self._paging: native.Paging | None = None
        # What one row of a read copies: a plane of a block, or of one head of it. Rows lie one after the other.
        self._row_heads = spec.num_kv_heads if self.order.heads_first else 1
        row_heads = () if self.order.heads_first else (spec.num_kv_heads,)
        row = (block_size, *row_heads, spec.kv_head_dim)
        self._rows = stored.view(-1, *row)
        self._read = self._memory.new_empty((0, *row))  # grows; fresh memory for every layer costs page faults

    @property
    def registered(self) -> torch.Tensor:
        """All bytes of the registered memory, the pool's and those behind it, uint8."""
        return self._memory.view(torch.uint8)

    @property
    def buffer(self) -> NDArray[np.uint8]:
        """All bytes, the pool's ``layout.nbytes`` and staging behind them, without a copy. Host memory only."""
        view: NDArray[np.uint8] = self.registered.numpy()
        return view

    @property
    def cells(self) -> torch.Tensor:
        """Every block of every layer in memory order, a view: [num_cells, planes, block_size, num_kv_heads, size].

        A cell is the block whose first byte is ``layout.block_bytes`` times its number, see ``kv.plan.Cells``.
        """
        return (self.pool.transpose(0, 1) if self.order.blocks_first else self.pool).flatten(0, 1)

    def slots(self, table: Sequence[int], start: int, num_tokens: int) -> list[int]:
        """The slots of tokens [start, start + num_tokens) of a sequence with this block table."""
        size = self.block_size
        return [table[position // size] * size + position % size for position in range(start, start + num_tokens)]

    @property
    def attendable(self) -> bool:
        """Whether compiled attention can read the pool in place."""
        return self.pool.is_cpu and self._num_planes == 2 and self.pool.shape[-1] % native.LANES == 0

    def address(self, layer: int) -> int:
        """Where that layer's first block lies in memory, whatever the pool's order is."""
        return self._address + layer * self._strides[0]

    def paging(self, num_heads: int) -> native.Paging:
        """Where KV lies in a layer, for ``num_heads`` query heads and a score of ``q * k / sqrt(head_dim)``."""
        if self._paging is None or self._paging.num_heads != num_heads:
            _, _, _, block_size, num_kv_heads, size = self.pool.shape
            _, *strides, _ = self.pool.stride()
            self._paging = native.Paging(num_heads, num_kv_heads, size, block_size, *strides, size**-0.5)
        return self._paging

    def write(self, layer: int, slots: torch.Tensor, *planes: torch.Tensor) -> None:
        """Store ``planes``, each [num_tokens, num_kv_heads, kv_head_dim], at ``slots``, shape [num_tokens]."""
        kernels = native.kernels() if self.pool.is_cpu else None
        if kernels is not None and all(_rows_are(plane) for plane in planes):
            _, block, plane_stride, slot, head, item = self._strides
            for plane, values in enumerate(planes):
                kernels.xpyd_store(
                    values.data_ptr(),
                    values.stride(0) * item,
                    self.address(layer) + plane * plane_stride,
                    slots.data_ptr(),
                    *values.shape[:2],
                    values.shape[2] * item,
                    self.block_size,
                    block,
                    slot,
                    head,
                )
            return
        blocks, offsets = slots // self.block_size, slots % self.block_size
        for plane, values in enumerate(planes):
            self.pool[layer, blocks, plane, offsets] = values

    def read(self, layer: int, tables: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The planes of ``tables`` [..., num_blocks]: each [..., num_blocks * block_size, num_kv_heads, kv_head_dim].

        They are views of one buffer that the next read reuses: use them before it.
        """
        rows = self._rows_of(layer, tables)  # [planes, ..., num_blocks], or [planes, ..., num_kv_heads, num_blocks]
        if self._read.shape[0] < rows.numel():
            self._read = self._rows.new_empty((rows.numel(), *self._rows.shape[1:]))
        copied = self._read[: rows.numel()]
        # index_select copies whole rows; indexing with a tensor copies element by element, many times slower.
        torch.index_select(self._rows, 0, rows.flatten(), out=copied)
        planes = copied.view(*rows.shape[:-1], -1, *self._rows.shape[2:]).unbind()
        return tuple(plane.transpose(-3, -2) for plane in planes) if self.order.heads_first else planes

    def _rows_of(self, layer: int, tables: torch.Tensor) -> torch.Tensor:
        layout, heads = self.layout, self._row_heads
        per_block = self._num_planes * heads  # rows of K, then rows of V
        first = (tables * layout.block_stride + layer * layout.layer_stride) // layout.block_bytes * per_block
        planes = torch.stack([first + plane * heads for plane in range(self._num_planes)])
        if not self.order.heads_first:
            return planes
        return planes[..., None, :] + torch.arange(heads, device=tables.device)[:, None]


def _rows_are(plane: torch.Tensor) -> bool:
    """Whether a token's heads lie one behind the other."""
    return plane.stride(2) == 1 and plane.stride(1) == plane.shape[2]
