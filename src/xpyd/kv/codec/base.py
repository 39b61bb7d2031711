"""What a codec is: KV blocks to bytes and back, for the way between two ranks. Pure: tensors in, tensors out.

Blocks are [num_blocks, planes, block_size, num_kv_heads, head_dim] in the pool's dtype, planes K and V, or one latent;
encoded bytes are uint8, contiguous, and go into a registered staging buffer. A codec keeps scratch memory, so each
thread needs its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from xpyd.kv.codec.config import CodecConfig


class CodecError(ValueError):
    """KV that a codec cannot carry, or bytes that it did not write; the message names what and where."""


@dataclass(frozen=True)
class BlockShape:
    """One KV block of one layer, as its rank holds it (under tensor parallelism: its own heads)."""

    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    num_planes: int = 2  # K and V; 1 with latent attention

    @property
    def dims(self) -> tuple[int, int, int, int]:
        """Planes, tokens, heads, and the values of a head."""
        return self.num_planes, self.block_size, self.num_kv_heads, self.head_dim

    @property
    def num_values(self) -> int:
        return self.num_planes * self.block_size * self.num_kv_heads * self.head_dim

    @property
    def nbytes(self) -> int:
        return self.num_values * self.dtype.itemsize


class Codec(ABC):
    """Encodes whole blocks of one layer. ``encode`` writes a payload that ``decode`` reads without anything else."""

    lossy: ClassVar[bool]
    fixed_rate: ClassVar[bool]  # the payload's size follows from the number of blocks; else it must travel too

    def __init__(self, config: CodecConfig, shape: BlockShape) -> None:
        self.config = config
        self.shape = shape

    @abstractmethod
    def max_encoded_bytes(self, num_blocks: int) -> int:
        """Bytes that ``num_blocks`` encoded blocks take: exactly so where ``fixed_rate``, else at most."""

    @abstractmethod
    def encode(self, blocks: torch.Tensor, out: torch.Tensor) -> int:
        """Write ``blocks`` into the front of ``out`` (uint8, ``max_encoded_bytes`` or longer); the bytes written.

        Raises CodecError for values that the codec cannot carry.
        """

    @abstractmethod
    def decode(self, data: torch.Tensor, out: torch.Tensor) -> None:
        """Fill the blocks ``out`` from ``data``, exactly the bytes that ``encode`` wrote. Raises CodecError."""

    def _check_blocks(self, blocks: torch.Tensor) -> None:
        assert blocks.shape[1:] == self.shape.dims, f"blocks of {list(blocks.shape[1:])}, not {self.shape.dims}"
        assert blocks.dtype == self.shape.dtype, f"blocks of {blocks.dtype}, not {self.shape.dtype}"

    def _check_size(self, data: torch.Tensor, num_blocks: int) -> None:
        """A fixed-rate payload has one possible size."""
        expected = self.max_encoded_bytes(num_blocks)
        if data.numel() != expected:
            raise CodecError(
                f"codec {self.config.label}: {data.numel()} bytes for {num_blocks} blocks, expected {expected}; do "
                "both ranks use the same transfer.codec and scheduler.block_size?"
            )


class NoneCodec(Codec):
    """The blocks' own bytes: the null control, and what staging alone costs."""

    lossy = False
    fixed_rate = True

    def max_encoded_bytes(self, num_blocks: int) -> int:
        return num_blocks * self.shape.nbytes

    def encode(self, blocks: torch.Tensor, out: torch.Tensor) -> int:
        self._check_blocks(blocks)
        nbytes = self.max_encoded_bytes(len(blocks))
        out[:nbytes].copy_(blocks.reshape(-1).view(torch.uint8))
        return nbytes

    def decode(self, data: torch.Tensor, out: torch.Tensor) -> None:
        self._check_blocks(out)
        self._check_size(data, len(out))
        # bytes on both sides: neither has to lie where the other's dtype would want it
        out.view(torch.uint8).copy_(data.view(*out.shape[:-1], -1))
