"""One packed step as tensors: its tokens, and which cached tokens each of its sequences may see."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class DecodeGroup:
    """Decoding sequences of similar length: rows [begin, end) of the packed batch."""

    begin: int
    end: int
    tables: torch.Tensor  # [batch, max_blocks], padded with block 0
    ends: torch.Tensor  # [batch]: cached tokens of each
    window: int | None  # only so many of them are seen, the last ones
    block_size: int

    @cached_property
    def mask(self) -> torch.Tensor:
        """[batch, 1, 1, max_blocks * block_size], True where the token may be seen."""
        return decode_mask(self.ends, self.tables.shape[1] * self.block_size, self.window)


@dataclass(frozen=True)
class ChunkView:
    """One prompt chunk: rows [begin, end) of the packed batch, at positions [start, start + end - begin)."""

    begin: int
    end: int
    start: int
    table: torch.Tensor  # [num_blocks]
    mask: torch.Tensor | None  # [end - begin, start + end - begin]; None: plain causal from position 0

    @property
    def rows(self) -> slice:
        return slice(self.begin, self.end)

    @property
    def context_len(self) -> int:
        return self.start + self.end - self.begin


@dataclass(frozen=True)
class Batch:
    """One step's tokens, decodes first."""

    tokens: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens]
    slots: torch.Tensor  # [num_tokens]
    decodes: list[DecodeGroup]
    chunks: list[ChunkView]
    sampled_rows: torch.Tensor  # [num_samples]: rows whose logits are wanted


def causal_mask(start: int, num_tokens: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[num_tokens, start + num_tokens]: token i at position start + i sees itself and what is before it."""
    queries = torch.arange(start, start + num_tokens, device=device)[:, None]
    keys = torch.arange(start + num_tokens, device=device)[None, :]
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def decode_mask(lens: torch.Tensor, max_tokens: int, window: int | None) -> torch.Tensor:
    """[batch, 1, 1, max_tokens]: each sequence sees its own ``lens`` tokens, or the last ``window`` of them."""
    keys = torch.arange(max_tokens, device=lens.device)[None, :]
    seen = keys < lens[:, None]
    if window is not None:
        seen = seen & (keys >= lens[:, None] - window)
    return seen[:, None, None, :]
