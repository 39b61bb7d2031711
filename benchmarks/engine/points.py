"""What is measured: models and steps. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from xpyd.model.spec import ModelSpec

CONF = Path(__file__).parents[2] / "conf/model"
BLOCK_SIZE = 16
# Of the width of a real model, and so few layers that a CPU runs it: products outweigh everything else, as they should.
WIDE = ModelSpec("wide", 4, 1024, 16, 8, 64, 2816, 8192)
DEFAULT = ("tiny", "small", "wide")
MODELS = (*DEFAULT, "qwen3_0_6b")  # the last takes minutes, and 14 GB of memory beside transformers


@dataclass(frozen=True)
class Point:
    """One step. ``decode``: ``batch`` sequences, each of them one token behind ``num_tokens`` cached ones.

    ``prefill``: one prompt of ``num_tokens``, in chunks of ``chunk`` of them.
    """

    model: str
    kind: Literal["decode", "prefill"]
    batch: int
    num_tokens: int
    chunk: int

    @property
    def name(self) -> str:
        if self.kind == "decode":
            return f"decode of {self.batch} behind {self.num_tokens}"
        chunks = "" if self.chunk >= self.num_tokens else f" in chunks of {self.chunk}"
        return f"prefill of {self.num_tokens}{chunks}"

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Of a prefill: where each chunk begins and ends."""
        return [(at, min(at + self.chunk, self.num_tokens)) for at in range(0, self.num_tokens, self.chunk)]

    @property
    def num_blocks(self) -> int:
        """Of one sequence, its new token included."""
        return -(-(self.num_tokens + 1) // BLOCK_SIZE)


def decode(model: str, batch: int, num_tokens: int) -> Point:
    return Point(model, "decode", batch, num_tokens, 1)


def prefill(model: str, num_tokens: int, chunk: int | None = None) -> Point:
    return Point(model, "prefill", 1, num_tokens, chunk or num_tokens)


def points(model: str, quick: bool) -> Iterator[Point]:
    """Batches of 1, 8 and 32 at short and long contexts; prompts of 128 to 2048 tokens, whole and in chunks."""
    yield from (decode(model, batch, 128) for batch in (1, 8, 32))
    if quick:
        yield prefill(model, 128)
        yield prefill(model, 512)
        return
    yield from (decode(model, batch, 512) for batch in (1, 8, 32))
    yield decode(model, 1, 2048)
    yield from (prefill(model, num_tokens) for num_tokens in (128, 512, 2048))
    yield prefill(model, 512, 128)
    yield prefill(model, 2048, 512)


def spec_of(model: str, dtype: str) -> ModelSpec:
    """The shape of ``conf/model``, or the wide one. Raises ValueError for a name that is neither."""
    if model == WIDE.name:
        values = {**vars(WIDE)}
    elif model in MODELS:
        values = yaml.safe_load((CONF / f"{model}.yaml").read_text())
    else:
        raise ValueError(f"--models {model}: not one of {', '.join(MODELS)}")
    return ModelSpec(**{**values, "dtype": dtype})
