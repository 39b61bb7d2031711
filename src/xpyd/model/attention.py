"""Attention over the paged cache: one packed batch holds decoding sequences (one token each) and prompt chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xpyd.kv.cache import KVCache


@dataclass(frozen=True)
class DecodeGroup:
    """Decoding sequences of similar length: rows [begin, end) of the packed batch."""

    begin: int
    end: int
    tables: torch.Tensor  # [batch, max_blocks], padded with block 0
    mask: torch.Tensor  # [batch, 1, 1, max_blocks * block_size], True where the token may be seen


@dataclass(frozen=True)
class ChunkView:
    """One prompt chunk: rows [begin, end) of the packed batch, at positions [start, start + end - begin)."""

    begin: int
    end: int
    start: int
    table: torch.Tensor  # [num_blocks]
    mask: torch.Tensor | None  # [end - begin, start + end - begin]; None: plain causal from position 0


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


def attend_decodes(q: torch.Tensor, cache: KVCache, layer: int, group: DecodeGroup) -> torch.Tensor:
    """``q`` [batch, num_heads, head_dim] against each sequence's cached tokens; same shape back.

    The query heads that share a KV head stand where SDPA expects successive queries: KV is read once for all of them.
    """
    k, v = cache.read(layer, group.tables)  # [batch, max_tokens, num_kv_heads, head_dim]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[-1])  # [batch, num_kv_heads, heads per KV head, head_dim]
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=group.mask).flatten(1, 2)


def attend_chunk(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cache: KVCache, layer: int, chunk: ChunkView
) -> torch.Tensor:
    """``q`` [n, num_heads, head_dim] against the chunk itself and what the cache holds before it; same shape back.

    ``k``, ``v`` [n, num_kv_heads, head_dim] are the chunk's own, so that a first chunk reads nothing back.
    """
    if chunk.start:
        context_len = chunk.start + chunk.end - chunk.begin
        k, v = (each[:context_len] for each in cache.read(layer, chunk.table))
    grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[-1]).permute(1, 2, 0, 3)
    # [num_kv_heads, heads per KV head, tokens, head_dim]; a KV head is repeated for its query heads without a copy
    k, v = (each.transpose(0, 1)[:, None].expand(-1, grouped.shape[1], -1, -1) for each in (k, v))
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=chunk.mask, is_causal=chunk.mask is None)
    return out.permute(2, 0, 1, 3).flatten(1, 2)
