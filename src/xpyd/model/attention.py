"""Grouped-query attention over the paged cache: each KV head serves several query heads (arXiv:2305.13245).

Heads are divided among the ranks of an instance; where there are more ranks than KV heads, some hold the same one.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xpyd.kv.cache import KVCache
from xpyd.model.batch import Batch, ChunkView, DecodeGroup
from xpyd.model.layer import Projected
from xpyd.model.rope import Angles, rotate
from xpyd.model.shard import Shard
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import HALF, Linear, Take, fuse, kernels_for, rms_norm, rows_of
from xpyd.native import Kernels


@dataclass(frozen=True)
class GroupedAttention:
    """Matrices are [out, in], as torch.nn.functional.linear takes them; sizes are those of the rank's shard."""

    num_heads: int
    num_kv_heads: int
    eps: float
    qkv: Linear  # [(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]
    q_norm: torch.Tensor | None  # [head_dim]
    k_norm: torch.Tensor | None
    o: Linear  # [hidden_size, num_heads * head_dim]

    @classmethod
    def load(cls, take: Take, prefix: str, spec: ModelSpec, shard: Shard) -> GroupedAttention:
        """This rank's heads of one layer of ``spec``, the whole model."""
        hidden, size = spec.hidden_size, spec.head_dim
        heads, kv_heads = shard.part(spec.num_heads), shard.kv_heads(spec.num_kv_heads)
        # (whole width, this rank's part of it)
        q, kv = (spec.num_heads * size, rows_of(heads, size)), (spec.num_kv_heads * size, rows_of(kv_heads, size))
        qkv = {"q": q, "k": kv, "v": kv}
        bias = None
        if spec.qkv_bias:
            bias = torch.cat([take(f"{prefix}{n}_proj.bias", w, part=(rows,)) for n, (w, rows) in qkv.items()])
        return cls(
            num_heads=len(heads),
            num_kv_heads=len(kv_heads),
            eps=spec.rms_norm_eps,
            qkv=fuse([take(f"{prefix}{n}_proj.weight", w, hidden, part=(rows,)) for n, (w, rows) in qkv.items()], bias),
            q_norm=take(f"{prefix}q_norm.weight", size) if spec.qk_norm else None,
            k_norm=take(f"{prefix}k_norm.weight", size) if spec.qk_norm else None,
            o=fuse([take(f"{prefix}o_proj.weight", hidden, q[0], part=(slice(None), q[1]))]),
        )

    def project(self, h: torch.Tensor, angles: Angles) -> Projected:
        """Queries [num_tokens, num_heads, head_dim]; planes K and V, [num_tokens, num_kv_heads, head_dim]."""
        num_heads, num_rotated = self.num_heads, self.num_heads + self.num_kv_heads
        qkv = self.qkv(h).view(h.shape[0], num_rotated + self.num_kv_heads, -1)
        v = qkv[:, num_rotated:]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (part.contiguous() for part in (qkv[:, :num_heads], qkv[:, num_heads:num_rotated]))
            q, k = rms_norm(q, self.q_norm, self.eps), rms_norm(k, self.k_norm, self.eps)
            return Projected(rotate(q, angles), (rotate(k, angles), v))
        rotated = rotate(qkv[:, :num_rotated], angles)
        return Projected(rotated[:, :num_heads], (rotated[:, num_heads:], v))

    def attend(self, projected: Projected, batch: Batch, cache: KVCache, layer: int) -> torch.Tensor:
        q, (k, v) = projected
        parts = [attend_decodes(q[group.begin : group.end], cache, layer, group) for group in batch.decodes]
        parts += [attend_chunk(q[c.rows], k[c.rows], v[c.rows], cache, layer, c) for c in batch.chunks]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.o(out.flatten(1))


def attend_decodes(q: torch.Tensor, cache: KVCache, layer: int, group: DecodeGroup) -> torch.Tensor:
    """``q`` [batch, num_heads, head_dim] against each sequence's cached tokens; same shape back.

    On a CPU they are read in place. Elsewhere they are gathered first; the query heads that share a KV head stand where
    SDPA expects successive queries, so that KV is read once for all of them.
    """
    if (kernels := kernels_for(q)) is not None and cache.attendable and q.stride(1) == q.shape[2]:
        return _attend_in_place(kernels, q, cache, layer, group)
    k, v = cache.read(layer, group.tables)  # [batch, max_tokens, num_kv_heads, head_dim]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])  # [batch, num_kv_heads, heads per KV head, head_dim]
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=group.mask).flatten(1, 2)


def _attend_in_place(kernels: Kernels, q: torch.Tensor, cache: KVCache, layer: int, group: DecodeGroup) -> torch.Tensor:
    batch, num_heads, _ = q.shape
    out = q.new_empty(q.shape)
    failed = kernels.xpyd_attend(
        HALF[q.dtype],
        q.data_ptr(),
        q.stride(0),
        cache.address(layer),
        out.data_ptr(),
        group.tables.data_ptr(),
        group.tables.shape[1],
        group.ends.data_ptr(),
        batch,
        group.window or 0,
        ctypes.addressof(cache.paging(num_heads)),
    )
    if failed:
        raise MemoryError(f"no memory for the attention scores of {batch} sequences of {num_heads} heads")
    return out


def attend_chunk(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: KVCache, layer: int, chunk: ChunkView
) -> torch.Tensor:
    """``q`` [n, num_heads, head_dim] against the chunk itself and what the cache holds before it; same shape back.

    ``k``, ``v`` [n, num_kv_heads, head_dim] are the chunk's own, so that a first chunk reads nothing back.
    """
    if chunk.start:
        k, v = (each[: chunk.context_len] for each in cache.read(layer, chunk.table))
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1]).permute(1, 2, 0, 3)
    # [num_kv_heads, heads per KV head, tokens, head_dim]; a KV head is repeated for its query heads without a copy
    k, v = (each.transpose(0, 1)[:, None].expand(-1, grouped.shape[1], -1, -1) for each in (k, v))
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=chunk.mask, is_causal=chunk.mask is None)
    return out.permute(2, 0, 1, 3).flatten(1, 2)
