"""The decoder (Llama family): RMSNorm, RoPE, grouped-query attention over paged KV, SwiGLU. Functions on weights.

A step is one packed batch, shape [num_tokens], of decoding sequences and prompt chunks: matrix products run once over
all of its tokens, attention runs by sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xpyd.kv.cache import KVCache
from xpyd.model.attention import ChunkView, DecodeGroup, attend_chunk, attend_decodes
from xpyd.model.rope import cos_sin, rotate
from xpyd.model.spec import ModelSpec
from xpyd.model.weights import LayerWeights, Weights


@dataclass(frozen=True)
class Batch:
    """One step's tokens, decodes first."""

    tokens: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens]
    slots: torch.Tensor  # [num_tokens]
    decodes: DecodeGroup | None
    num_decodes: int
    chunks: list[ChunkView]
    sampled_rows: torch.Tensor  # [num_samples]: rows whose logits are wanted


def forward(
    spec: ModelSpec,
    weights: Weights,
    frequencies: torch.Tensor,
    batch: Batch,
    cache: KVCache,
    on_layer: Callable[[int], None] | None,
) -> torch.Tensor:
    """Logits of the sampled rows, shape [num_samples, vocab_size], float32. Writes the batch's KV into the cache.

    ``on_layer(layer)`` is called when that layer's KV is in the pool and its output is computed.
    """
    x = weights.embedding[batch.tokens]  # [num_tokens, hidden_size]
    cos, sin = cos_sin(frequencies, batch.positions, x.dtype)
    for index, layer in enumerate(weights.layers):
        h = rms_norm(x, layer.input_norm, spec.rms_norm_eps)
        x = x + _attention(spec, layer, h, (cos, sin), batch, cache, index)
        h = rms_norm(x, layer.post_norm, spec.rms_norm_eps)
        x = x + _mlp(layer, h)
        if on_layer is not None:
            on_layer(index)
    x = rms_norm(x[batch.sampled_rows], weights.norm, spec.rms_norm_eps)
    return F.linear(x, weights.head).float()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, computed in float32 (arXiv:1910.07467)."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _attention(
    spec: ModelSpec,
    layer: LayerWeights,
    h: torch.Tensor,
    angles: tuple[torch.Tensor, torch.Tensor],
    batch: Batch,
    cache: KVCache,
    index: int,
) -> torch.Tensor:
    heads, kv_heads, dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
    qkv = F.linear(h, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, dim)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = rms_norm(q, layer.q_norm, spec.rms_norm_eps), rms_norm(k, layer.k_norm, spec.rms_norm_eps)
    q, k = rotate(q, *angles), rotate(k, *angles)
    cache.write(index, batch.slots, k, v)
    parts = []
    if batch.decodes is not None:
        parts.append(attend_decodes(q[: batch.num_decodes], cache, index, batch.decodes))
    for chunk in batch.chunks:
        rows = slice(chunk.begin, chunk.end)
        parts.append(attend_chunk(q[rows], k[rows], v[rows], cache, index, chunk))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return F.linear(out.reshape(-1, heads * dim), layer.o)


def _mlp(layer: LayerWeights, h: torch.Tensor) -> torch.Tensor:
    """SwiGLU (arXiv:2002.05202): ``down(silu(gate(h)) * up(h))``."""
    gate, up = F.linear(h, layer.gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, layer.down)
