"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), with linear, Llama 3 and YaRN frequency scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from xpyd.model.shapes import RopeScaling
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import HALF, kernels_for


def inverse_frequencies(spec: ModelSpec) -> torch.Tensor:
    """``theta ** (-2i / rope_dim)``, scaled where the model says so; shape [rope_dim / 2], float32."""
    exponents = torch.arange(0, spec.rope_dim, 2, dtype=torch.int64).float() / spec.rope_dim
    frequencies = 1.0 / (spec.rope_theta**exponents)
    scaling = spec.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling) if scaling.rope_type == "llama3" else _yarn(frequencies, scaling, spec)


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


def _yarn(frequencies: torch.Tensor, scaling: RopeScaling, spec: ModelSpec) -> torch.Tensor:
    """YaRN (arXiv:2309.00071): what turns ``beta_fast`` times or more in the original context is kept.

    What turns ``beta_slow`` times or less is divided by ``factor``; between, blended along the dimensions.
    """

    def dimension(num_turns: float) -> float:
        turns = scaling.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return spec.rope_dim * math.log(turns) / (2 * math.log(spec.rope_theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rope_dim - 1)
    ramp = (torch.arange(len(frequencies), dtype=torch.float32) - low) / ((high - low) or 0.001)
    divided = ramp.clamp(0, 1)
    return frequencies / scaling.factor * divided + frequencies * (1 - divided)


def yarn_mscale(factor: float, mscale: float) -> float:
    """How much longer contexts sharpen attention: ``0.1 * mscale * ln(factor) + 1``, 1 where nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _magnitude(scaling: RopeScaling | None) -> float:
    """What YaRN multiplies rotated queries and keys by."""
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
    return yarn_mscale(scaling.factor, 1.0)


@dataclass(frozen=True)
class Angles:
    """Of every token of a step; each [num_tokens, 1, rope_dim]."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True)
class Rope:
    """The rotation of one model, on one device."""

    frequencies: torch.Tensor  # [rope_dim / 2], float32
    magnitude: float = 1.0

    @classmethod
    def of(cls, spec: ModelSpec, device: str = "cpu") -> Rope:
        return cls(inverse_frequencies(spec).to(device), _magnitude(spec.rope_scaling))

    def angles(self, positions: torch.Tensor, dtype: torch.dtype) -> Angles:
        """``positions`` [num_tokens]."""
        angles = positions[:, None].float() * self.frequencies[None, :]
        angles = torch.cat((angles, angles), dim=-1)[:, None, :]
        cos, sin = angles.cos(), angles.sin()
        if self.magnitude != 1.0:
            cos, sin = cos * self.magnitude, sin * self.magnitude
        return Angles(cos.to(dtype), sin.to(dtype))


def rotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """``x`` [num_tokens, num_heads, rope_dim], rotated; halves are paired as in Hugging Face checkpoints.

    ``x`` itself may be overwritten: use what is returned.
    """
    num_tokens, num_heads, size = x.shape
    kernels = kernels_for(x)
    if kernels is not None and x.stride(1) == size and x.stride(2) == 1 and x.dtype == angles.cos.dtype:
        cos, sin = angles.cos.data_ptr(), angles.sin.data_ptr()
        kernels.xpyd_rotate(HALF[x.dtype], x.data_ptr(), cos, sin, num_tokens, x.stride(0), num_heads, size)
        return x
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos + torch.cat((-second, first), dim=-1) * angles.sin
