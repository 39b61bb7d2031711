"""From logits to tokens: greedy, or sampled from a generator of (request seed, token index) alone.

So a token depends neither on the batch it was computed in nor on the rank: both arms draw the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from xpyd.model.sampling_config import SamplingConfig


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token, and the gap between the two largest logits: how close the greedy choice was."""

    token: int
    margin: float


def sample(logits: torch.Tensor, config: SamplingConfig, seeds: list[tuple[int, int]]) -> list[Sampled]:
    """One token per row of ``logits`` [num_samples, vocab_size]; ``seeds``: (request seed, token index) per row."""
    top, greedy = logits.topk(2, dim=-1)
    margins: list[float] = (top[:, 0] - top[:, 1]).tolist()
    tokens = greedy[:, 0].tolist() if not config.temperature else _draw(logits, config, seeds)
    return [Sampled(token, margin) for token, margin in zip(tokens, margins, strict=True)]


def _draw(logits: torch.Tensor, config: SamplingConfig, seeds: list[tuple[int, int]]) -> list[int]:
    """Inverse transform sampling of the softmax at the temperature, in float64."""
    scaled = logits.double() / config.temperature
    if config.top_k:
        smallest = scaled.topk(min(config.top_k, scaled.shape[-1]), dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, float("-inf"))
    cumulative = scaled.softmax(-1).cumsum(-1)
    draws = torch.tensor([[np.random.default_rng(seed).random()] for seed in seeds], dtype=torch.float64).to(
        logits.device
    )
    tokens: list[int] = torch.searchsorted(cumulative, draws * cumulative[:, -1:]).squeeze(-1).tolist()
    return tokens
