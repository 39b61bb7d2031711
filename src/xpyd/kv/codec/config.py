"""Which codec KV blocks travel in, and its settings. No torch: front ends read it too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

SCALED, COMPRESSED = ("fp8", "int8"), ("zstd", "lz4")


@dataclass(frozen=True)
class CodecConfig:
    """``none`` moves the pool's own bytes; ``fp8`` and ``int8`` round, ``zstd`` and ``lz4`` lose nothing.

    ``None`` leaves a setting to the codec that reads it; one that the codec would ignore is refused.
    """

    name: Literal["none", "fp8", "int8", "zstd", "lz4"] = "none"
    granularity: Literal["block", "head"] | None = None  # fp8, int8: what shares one scale; K and V never do
    level: Annotated[int, Ge(-7), Le(19)] | None = None  # zstd: 1 is fast, 19 is small, below 0 is faster still
    shuffle: bool | None = None  # zstd, lz4: put the bytes of equal rank together, exponents beside exponents

    def __post_init__(self) -> None:
        readers = {"granularity": SCALED, "level": ("zstd",), "shuffle": COMPRESSED}
        for key, codecs in readers.items():
            value = getattr(self, key)
            if value is not None and self.name not in codecs:
                raise ValueError(
                    f"{key}={value} is read by {' and '.join(codecs)} only, but name={self.name}; drop {key}, or "
                    f"choose one of them"
                )

    @property
    def scale_per(self) -> Literal["block", "head"]:
        return self.granularity or "head"

    @property
    def zstd_level(self) -> int:
        return 1 if self.level is None else self.level

    @property
    def shuffled(self) -> bool:
        return self.shuffle is not False

    @property
    def label(self) -> str:
        """The codec with its settings, as tables name it."""
        if self.name in SCALED:
            return f"{self.name} per {self.scale_per}"
        level = f" {self.zstd_level}" if self.name == "zstd" else ""
        return f"{self.name}{level}{' shuffled' if self.name in COMPRESSED and self.shuffled else ''}"
