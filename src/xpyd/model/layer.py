"""The seam of the decoder: what a layer is made of, whatever its attention caches and its MLP routes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from xpyd.kv.cache import KVCache
from xpyd.model.batch import Batch
from xpyd.model.rope import Angles


class Projected(NamedTuple):
    """Queries of a step, and what its tokens leave in the cache."""

    queries: torch.Tensor  # [num_tokens, num_heads, query size]
    planes: tuple[torch.Tensor, ...]  # what KVCache.write takes: each [num_tokens, num_kv_heads, kv_head_dim]


class Attention(Protocol):
    """One layer's attention on one rank: its weights, and what they do."""

    def project(self, h: torch.Tensor, angles: Angles) -> Projected:
        """``h`` [num_tokens, hidden_size], normed, at the positions of ``angles``."""

    def attend(self, projected: Projected, batch: Batch, cache: KVCache, layer: int) -> torch.Tensor:
        """Every sequence over its own tokens, [num_tokens, hidden_size]; the batch's planes are in the cache.

        Under tensor parallelism this rank's summand of it.
        """


class Mlp(Protocol):
    """One layer's MLP on one rank, dense or of experts."""

    def run(self, h: torch.Tensor) -> torch.Tensor:
        """``h`` [num_tokens, hidden_size], normed; the same shape back, or this rank's summand of it."""


@dataclass(frozen=True)
class Layer:
    input_norm: torch.Tensor  # [hidden_size]
    attention: Attention
    post_norm: torch.Tensor
    mlp: Mlp
