"""Lossless compression, the control: what KV can save without changing a token. Sizes vary with the content.

zstd and lz4 come with pyarrow, which the run folder needs anyway. Host memory only.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from xpyd.kv.codec.base import BlockShape, Codec, CodecError
from xpyd.kv.codec.config import CodecConfig

HEADER = np.dtype("<u8")  # twice: bytes of the blocks, bytes of the frame; lz4 itself takes a short frame for whole
HEADER_BYTES = 2 * HEADER.itemsize
SLACK_BYTES = 1024  # for headers, ours and the format's


class CompressedCodec(Codec):
    """All blocks of a call in one frame. Shuffled: the first bytes of all values, then the second, and so on.

    A float's exponent repeats and its mantissa does not; side by side, the exponents compress.
    """

    lossy = False
    fixed_rate = False

    def __init__(self, config: CodecConfig, shape: BlockShape) -> None:
        super().__init__(config, shape)
        level = config.zstd_level if config.name == "zstd" else None
        self._codec = pa.Codec(config.name, compression_level=level)

    def max_encoded_bytes(self, num_blocks: int) -> int:
        """Neither frame format grows by more than 1/128 (zstd: 1/256, lz4: 1/255) and its headers."""
        nbytes = num_blocks * self.shape.nbytes
        return nbytes + nbytes // 128 + SLACK_BYTES

    def encode(self, blocks: torch.Tensor, out: torch.Tensor) -> int:
        self._check_blocks(blocks)
        raw: NDArray[np.uint8] = blocks.reshape(-1).view(torch.uint8).numpy()
        if self.config.shuffled:
            raw = np.ascontiguousarray(raw.reshape(-1, self.shape.dtype.itemsize).T).reshape(-1)
        frame = np.frombuffer(self._codec.compress(raw), np.uint8)
        nbytes = HEADER_BYTES + frame.nbytes
        assert nbytes <= self.max_encoded_bytes(len(blocks)), f"a frame of {frame.nbytes} bytes exceeds its bound"
        payload: NDArray[np.uint8] = out[:nbytes].numpy()
        payload[:HEADER_BYTES] = np.array([raw.nbytes, frame.nbytes], HEADER).view(np.uint8)
        payload[HEADER_BYTES:] = frame
        return nbytes

    def decode(self, data: torch.Tensor, out: torch.Tensor) -> None:
        self._check_blocks(out)
        raw = self._unpack(data.numpy(), len(out))
        if self.config.shuffled:
            raw = np.ascontiguousarray(raw.reshape(self.shape.dtype.itemsize, -1).T).reshape(-1)
        out.view(torch.uint8).copy_(torch.from_numpy(raw.view()).view(*out.shape[:-1], -1))

    def _unpack(self, data: NDArray[np.uint8], num_blocks: int) -> NDArray[np.uint8]:
        """The bytes of ``num_blocks`` blocks out of a payload. Raises CodecError for one that does not hold them."""
        nbytes, problem = num_blocks * self.shape.nbytes, "its header names other sizes"
        if data[:HEADER_BYTES].copy().view(HEADER).tolist() == [nbytes, data.nbytes - HEADER_BYTES]:
            try:
                return np.frombuffer(self._codec.decompress(data[HEADER_BYTES:], nbytes), np.uint8)
            except (OSError, pa.ArrowInvalid) as error:
                problem = str(error)
        raise CodecError(
            f"codec {self.config.label}: {data.nbytes} bytes are no payload of {num_blocks} blocks ({problem}); do "
            "both ranks use the same transfer.codec and scheduler.block_size?"
        )
