"""Spans of memory, and where each KV block lies in the pool: bytes only, shared by pool, plan and transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """One contiguous piece of the pool, in bytes."""

    offset: int
    nbytes: int


@dataclass(frozen=True)
class PoolLayout:
    """A pool laid out layer by layer: shape [num_layers, num_blocks, block_bytes], contiguous.

    ``block_bytes`` holds K and V of ``block_size`` tokens in one layer, so neighbouring blocks of a layer are one span.
    """

    num_layers: int
    num_blocks: int
    block_bytes: int

    @property
    def layer_bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def nbytes(self) -> int:
        return self.num_layers * self.layer_bytes

    def offset(self, layer: int, block: int) -> int:
        """First byte of ``block`` in ``layer``, counted from the pool's begin."""
        return layer * self.layer_bytes + block * self.block_bytes
