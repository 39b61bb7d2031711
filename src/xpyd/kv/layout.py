"""Spans of memory, and where each KV block lies in the pool: bytes only, shared by pool, plan and transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """One contiguous piece of the pool, in bytes."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class PoolOrder:
    """What lies beside what in the pool.

    ``blocks_first``: all layers of a block are contiguous, so that a whole block is one span; else all blocks of a
    layer are, so that neighbouring blocks of one layer are one span. ``heads_first``: inside K and V of a block all
    tokens of a head are contiguous, so that a range of heads is one span; else all heads of a token are.
    """

    blocks_first: bool = False
    heads_first: bool = False


@dataclass(frozen=True)
class PoolLayout:
    """Where each block of each layer begins: shape [num_layers, num_blocks] of ``block_bytes``, or blocks first.

    ``block_bytes`` holds K and V (or a latent) of ``block_size`` tokens in one layer, whatever their order inside.
    """

    num_layers: int
    num_blocks: int
    block_bytes: int
    blocks_first: bool = False

    @property
    def layer_bytes(self) -> int:
        """Bytes of one layer, all blocks: contiguous unless ``blocks_first``."""
        return self.num_blocks * self.block_bytes

    @property
    def nbytes(self) -> int:
        return self.num_layers * self.layer_bytes

    @property
    def layer_stride(self) -> int:
        """Bytes from a block in one layer to the same block in the next."""
        return self.block_bytes if self.blocks_first else self.layer_bytes

    @property
    def block_stride(self) -> int:
        """Bytes from one block to the next in the same layer."""
        return self.num_layers * self.block_bytes if self.blocks_first else self.block_bytes

    def offset(self, layer: int, block: int) -> int:
        """First byte of ``block`` in ``layer``, counted from the pool's begin."""
        return layer * self.layer_stride + block * self.block_stride
