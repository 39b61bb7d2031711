"""fp8 and int8: one byte per value, and one float32 scale for the values that share it.

A record per block, complete in itself: its scales, then its codes. So any run of blocks has a known size and place,
and pieces of a transfer may be cut between blocks as they are without a codec. ``x' = code * scale``.

Scales are never below float32's smallest normal number: blocks of zeros decode to zeros, denormals to within half of
it, and no division overflows. NaN and infinity have no scale and are refused.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from xpyd.kv.codec.base import BlockShape, Codec, CodecError
from xpyd.kv.codec.config import CodecConfig

SCALE_BYTES = 4
SMALLEST_SCALE, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
FP8_MAX, INT8_MAX = 448.0, 127.0  # the largest finite e4m3fn, and the largest code that has a negative


class ScaledCodec(Codec):
    """Values over ``scale = max |x| / largest code``, per block or per head of a block, each plane (K, V) apart."""

    lossy = True
    fixed_rate = True
    largest: ClassVar[float]

    def __init__(self, config: CodecConfig, shape: BlockShape) -> None:
        super().__init__(config, shape)
        self._per_head = config.scale_per == "head"
        self._num_scales = shape.num_planes * (shape.num_kv_heads if self._per_head else 1)
        self._wide = torch.empty((0, *shape.dims), dtype=torch.float32)  # grows; fresh memory costs page faults

    def max_encoded_bytes(self, num_blocks: int) -> int:
        return num_blocks * (self._num_scales * SCALE_BYTES + self.shape.num_values)

    def encode(self, blocks: torch.Tensor, out: torch.Tensor) -> int:
        self._check_blocks(blocks)
        nbytes = self.max_encoded_bytes(len(blocks))
        wide = self._scratch(blocks).copy_(blocks)
        scales = self._scales(wide)
        scale_records, codes = self._records(out[:nbytes], len(blocks))
        scale_records.copy_(scales.flatten(1).view(torch.uint8))
        self._to_codes(wide.div_(scales), codes)
        return nbytes

    def decode(self, data: torch.Tensor, out: torch.Tensor) -> None:
        self._check_blocks(out)
        self._check_size(data, len(out))
        scale_records, codes = self._records(data, len(out))
        heads = self.shape.num_kv_heads if self._per_head else 1
        scales = scale_records.clone(memory_format=torch.contiguous_format).view(torch.float32)
        scales = scales.view(-1, self.shape.num_planes, 1, heads, 1)
        wide = self._scratch(out)
        self._from_codes(codes, wide)
        out.copy_(wide.mul_(scales))

    @abstractmethod
    def _to_codes(self, values: torch.Tensor, codes: torch.Tensor) -> None:
        """Round ``values``, within +-``largest``, into the bytes ``codes`` of the same shape. May change ``values``."""

    @abstractmethod
    def _from_codes(self, codes: torch.Tensor, values: torch.Tensor) -> None:
        """The numbers that the bytes ``codes`` stand for, into ``values`` (float32) of the same shape."""

    def _scales(self, wide: torch.Tensor) -> torch.Tensor:
        """[num_blocks, planes, 1, num_kv_heads or 1, 1]. Raises CodecError where a value is not finite."""
        # The extremes of the last dimension first: one pass over the values, and no copy of their magnitudes.
        largest = torch.maximum(wide.amax(4, keepdim=True), wide.amin(4, keepdim=True).neg_())
        largest = largest.amax((2,) if self._per_head else (2, 3), keepdim=True)
        if not bool(largest.isfinite().all()):
            block, plane, *_ = (int(i) for i in (~largest.isfinite()).nonzero()[0])
            named = "KV"[plane] if self.shape.num_planes == 2 else "the latent"
            raise CodecError(
                f"codec {self.config.label}: {named} of block {block} of {len(wide)} holds NaN or infinity, which "
                "no scale can carry; look for an overflow in the model, or move KV with codec=none, zstd or lz4"
            )
        # Rounded up, the scale of float32's own maximum would decode to infinity: hence an upper end too.
        return largest.div_(self.largest).clamp_(SMALLEST_SCALE, LARGEST / self.largest * (1 - 1e-6))

    def _records(self, data: torch.Tensor, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views into ``data``: scale bytes [num_blocks, bytes], and codes in the shape of the blocks."""
        records = data.view(num_blocks, -1)
        num_bytes = self._num_scales * SCALE_BYTES
        return records[:, :num_bytes], records[:, num_bytes:].view(-1, *self.shape.dims)

    def _scratch(self, like: torch.Tensor) -> torch.Tensor:
        if len(self._wide) < len(like) or self._wide.device != like.device:
            self._wide = torch.empty(like.shape, dtype=torch.float32, device=like.device)
        return self._wide[: len(like)]


class Int8Codec(ScaledCodec):
    """Whole numbers from -127 to 127: ``|x - x'| <= scale / 2``, and the rounding of the pool's own dtype."""

    largest = INT8_MAX

    def _to_codes(self, values: torch.Tensor, codes: torch.Tensor) -> None:
        codes.view(torch.int8).copy_(values.round_())

    def _from_codes(self, codes: torch.Tensor, values: torch.Tensor) -> None:
        values.copy_(codes.view(torch.int8))


class Fp8Codec(ScaledCodec):
    """e4m3fn (arXiv:2209.05433): ``|x - x'| <= 2^-4 |x|``, or ``2^-10 * scale`` where its own denormals begin."""

    largest = FP8_MAX

    def _to_codes(self, values: torch.Tensor, codes: torch.Tensor) -> None:
        codes.view(torch.float8_e4m3fn).copy_(values)

    def _from_codes(self, codes: torch.Tensor, values: torch.Tensor) -> None:
        """Sign, exponent and mantissa moved to where float16 has them: torch's own cast is many times slower on a CPU.

        float16's exponent counts from 15, e4m3's from 7: hence 2^8. Denormals follow by themselves.
        """
        halves = codes.view(torch.int8).to(torch.int16) << 7  # two sign bits, then exponent and mantissa
        halves &= ~(1 << 14)
        torch.mul(halves.view(torch.float16), 256.0, out=values)
