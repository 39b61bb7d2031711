"""The decoder (Llama family): RMSNorm, RoPE, grouped-query attention over paged KV, SwiGLU. Functions on weights.

A step is one packed batch, shape [num_tokens], of decoding sequences and prompt chunks: matrix products run once over
all of its tokens, attention runs by sequence. A rank of a tensor-parallel instance runs the same code on its shard of
the model: it sums what the ranks got after the o and the down products, and joins the logits at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xpyd.kv.cache import KVCache
from xpyd.model.attention import ChunkView, DecodeGroup, attend_chunk, attend_decodes
from xpyd.model.parallel import Reducer
from xpyd.model.rope import cos_sin, rotate
from xpyd.model.spec import ModelSpec
from xpyd.model.weights import LayerWeights, Weights


@dataclass(frozen=True)
class Batch:
    """One step's tokens, decodes first."""

    tokens: torch.Tensor  # [num_tokens]
    positions: torch.Tensor  # [num_tokens]
    slots: torch.Tensor  # [num_tokens]
    decodes: list[DecodeGroup]
    chunks: list[ChunkView]
    sampled_rows: torch.Tensor  # [num_samples]: rows whose logits are wanted


def forward(
    spec: ModelSpec,
    weights: Weights,
    frequencies: torch.Tensor,
    batch: Batch,
    cache: KVCache,
    on_layer: Callable[[int], None] | None,
    reducer: Reducer | None = None,
) -> torch.Tensor:
    """Logits of the sampled rows, shape [num_samples, vocab_size], float32. Writes the batch's KV into the cache.

    ``on_layer(layer)`` is called as soon as that layer's KV is in the pool, before its attention and MLP run.
    With a ``reducer``, ``spec`` and ``weights`` are a shard, and only the leader gets the logits of all columns.
    """
    x = weights.embedding[batch.tokens]  # [num_tokens, hidden_size]
    cos, sin = cos_sin(frequencies, batch.positions, x.dtype)
    for index, layer in enumerate(weights.layers):
        q, k, v = _project(spec, layer, rms_norm(x, layer.input_norm, spec.rms_norm_eps), cos, sin)
        cache.write(index, batch.slots, k, v)
        if on_layer is not None:
            on_layer(index)
        attended = F.linear(_attend(q, k, v, batch, cache, index), layer.o)
        x = x + (attended if reducer is None else reducer.sum(attended))
        inner = _mlp(layer, rms_norm(x, layer.post_norm, spec.rms_norm_eps))
        x = x + (inner if reducer is None else reducer.sum(inner))
    x = rms_norm(x[batch.sampled_rows], weights.norm, spec.rms_norm_eps)
    logits = F.linear(x, weights.head).float()
    return logits if reducer is None else reducer.join(logits, spec.vocab_size)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, computed in float32 (arXiv:1910.07467)."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def _project(
    spec: ModelSpec, layer: LayerWeights, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries [num_tokens, num_heads, head_dim], keys and values [num_tokens, num_kv_heads, head_dim], rotated."""
    heads, kv_heads = spec.num_heads, spec.num_kv_heads
    qkv = F.linear(h, layer.qkv, layer.qkv_bias).view(-1, heads + 2 * kv_heads, spec.head_dim)
    q, k, v = torch.split(qkv, [heads, kv_heads, kv_heads], dim=1)
    if layer.q_norm is not None and layer.k_norm is not None:
        q, k = rms_norm(q, layer.q_norm, spec.rms_norm_eps), rms_norm(k, layer.k_norm, spec.rms_norm_eps)
    return rotate(q, cos, sin), rotate(k, cos, sin), v


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, batch: Batch, cache: KVCache, layer: int
) -> torch.Tensor:
    """Attention of every sequence over its own tokens, shape [num_tokens, num_heads * head_dim]."""
    parts = [attend_decodes(q[group.begin : group.end], cache, layer, group) for group in batch.decodes]
    for chunk in batch.chunks:
        rows = slice(chunk.begin, chunk.end)
        parts.append(attend_chunk(q[rows], k[rows], v[rows], cache, layer, chunk))
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    return out.flatten(1)


def _mlp(layer: LayerWeights, h: torch.Tensor) -> torch.Tensor:
    """SwiGLU (arXiv:2002.05202): ``down(silu(gate(h)) * up(h))``."""
    gate, up = F.linear(h, layer.gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, layer.down)
