"""From logits to tokens: greedy, or sampled from a generator of (request seed, token index) alone.

So a token depends neither on the batch it was computed in nor on the rank: both arms draw the same ones.
"""

from __future__ import annotations

import ctypes

import numpy as np
import torch

from xpyd import native
from xpyd.model.sampled import Sampled
from xpyd.model.sampling_config import SamplingConfig


def sample(logits: torch.Tensor, config: SamplingConfig, seeds: list[tuple[int, int]]) -> list[Sampled]:
    """One token per row of ``logits`` [num_samples, vocab_size]; ``seeds``: (request seed, token index) per row."""
    greedy, margins = _largest(logits)
    tokens = greedy if not config.temperature else _draw(logits, config, seeds)
    return [Sampled(token, margin) for token, margin in zip(tokens, margins, strict=True)]


def _largest(logits: torch.Tensor) -> tuple[list[int], list[float]]:
    """The token of each row's largest logit, and what it exceeds the second by."""
    kernels = native.kernels() if logits.is_cpu and logits.is_contiguous() and logits.dtype == torch.float32 else None
    if kernels is None:
        top, greedy = logits.topk(2, dim=-1)
        return greedy[:, 0].tolist(), (top[:, 0] - top[:, 1]).tolist()
    num_rows, size = logits.shape
    tokens, margins = (ctypes.c_int64 * num_rows)(), (ctypes.c_float * num_rows)()
    kernels.xpyd_largest(logits.data_ptr(), num_rows, size, ctypes.addressof(tokens), ctypes.addressof(margins))
    return tokens[:], margins[:]


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
