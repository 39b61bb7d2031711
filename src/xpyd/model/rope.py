"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), with linear and Llama 3 frequency scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from xpyd.model.spec import ModelSpec, RopeScaling


def inverse_frequencies(spec: ModelSpec) -> torch.Tensor:
    """``theta ** (-2i / head_dim)``, scaled where the model says so; shape [head_dim / 2], float32."""
    exponents = torch.arange(0, spec.head_dim, 2, dtype=torch.int64).float() / spec.head_dim
    frequencies = 1.0 / (spec.rope_theta**exponents)
    if spec.rope_scaling is None:
        return frequencies
    if spec.rope_scaling.rope_type == "linear":
        return frequencies / spec.rope_scaling.factor
    return _llama3(frequencies, spec.rope_scaling)


def _llama3(frequencies: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1's scaling: long wavelengths are divided by ``factor``, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    context = scaling.original_max_position_embeddings
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = (context / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / scaling.factor + smooth * frequencies
    scaled = torch.where(wavelengths > context / low, frequencies / scaling.factor, frequencies)
    between = (wavelengths <= context / low) & (wavelengths >= context / high)
    return torch.where(between, blended, scaled)


@dataclass(frozen=True)
class Angles:
    """Of every token of a step; each [num_tokens, 1, head_dim]."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class Rope:
    """The rotation of one model, on one device."""

    frequencies: torch.Tensor  # [head_dim / 2], float32

    @classmethod
    def of(cls, spec: ModelSpec, device: str = "cpu") -> Rope:
        return cls(inverse_frequencies(spec).to(device))

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> Angles:
        """``positions`` [num_tokens]."""
        angles = positions[:, None].float() * self.frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        return Angles(angles.cos().to(dtype), angles.sin().to(dtype))


def rotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """Rotate ``x`` [num_tokens, num_heads, head_dim]; halves are paired as in Hugging Face checkpoints."""
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos + torch.cat((-second, first), dim=-1) * angles.sin
