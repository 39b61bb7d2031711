"""The codecs by name."""

from __future__ import annotations

from xpyd.kv.codec.base import BlockShape, Codec, NoneCodec
from xpyd.kv.codec.compressed import CompressedCodec
from xpyd.kv.codec.config import CodecConfig
from xpyd.kv.codec.scaled import Fp8Codec, Int8Codec

CODECS: dict[str, type[Codec]] = {
    "none": NoneCodec,
    "fp8": Fp8Codec,
    "int8": Int8Codec,
    "zstd": CompressedCodec,
    "lz4": CompressedCodec,
}


def build_codec(config: CodecConfig, shape: BlockShape) -> Codec:
    return CODECS[config.name](config, shape)
