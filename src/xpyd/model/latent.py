"""Multi-head latent attention (DeepSeek V2, arXiv:2405.04434): the cache holds one small vector per token.

The vector is a normed latent, from which every head's keys and values are made, beside one rotated key that all heads
share. A prompt chunk expands keys and values from the cached latents. A decode never does: its query is brought into
the latent's space and its result out of it (section 2.1.2, "absorbed"), so that a step reads the small vectors only.

Query heads are divided among the ranks of an instance; each rank makes and holds the whole latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xpyd.kv.cache import KVCache
from xpyd.model.batch import Batch, ChunkView, DecodeGroup
from xpyd.model.layer import Projected
from xpyd.model.rope import Angles, rotate, yarn_mscale
from xpyd.model.shapes import LatentShape
from xpyd.model.shard import Shard
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import Linear, Take, fuse, rms_norm, rows_of

NORM_EPS = 1e-6  # of the two inner norms: fixed in DeepSeek's own code, whatever the model's rms_norm_eps is


@dataclass(frozen=True)
class LatentAttention:
    """Matrices are [out, in]; heads are those of the rank's shard."""

    shape: LatentShape
    num_heads: int
    scale: float
    first: Linear  # what reads the hidden state: queries (or their bottleneck), latent, rotated key
    q_norm: torch.Tensor | None  # [q_lora_rank]
    q_up: Linear | None  # [num_heads * qk_head_dim, q_lora_rank]
    kv_norm: torch.Tensor  # [kv_lora_rank]
    k_up: torch.Tensor  # [num_heads, qk_nope_head_dim, kv_lora_rank]
    v_up: torch.Tensor  # [num_heads, v_head_dim, kv_lora_rank]
    o: Linear  # [hidden_size, num_heads * v_head_dim]

    @classmethod
    def load(cls, take: Take, prefix: str, spec: ModelSpec, shape: LatentShape, shard: Shard) -> LatentAttention:
        """This rank's heads of one layer of ``spec``, the whole model."""
        hidden, rank, heads = spec.hidden_size, shape.kv_lora_rank, shard.part(spec.num_heads)
        bottleneck = shape.q_lora_rank
        name, width = ("q_proj", hidden) if bottleneck is None else ("q_b_proj", bottleneck)
        rows = rows_of(heads, shape.qk_head_dim)
        q = take(f"{prefix}{name}.weight", spec.num_heads * shape.qk_head_dim, width, part=(rows,))
        q = _pair_halves(q.view(len(heads), shape.qk_head_dim, width), shape).flatten(0, 1)
        kv = take(f"{prefix}kv_a_proj_with_mqa.weight", shape.cached_dim, hidden)
        kv = _pair_halves(kv[None], shape)[0]
        size = shape.qk_nope_head_dim + shape.v_head_dim
        up = take(f"{prefix}kv_b_proj.weight", spec.num_heads * size, rank, part=(rows_of(heads, size),))
        k_up, v_up = torch.split(up.view(len(heads), size, rank), [shape.qk_nope_head_dim, shape.v_head_dim], dim=1)
        columns = rows_of(heads, shape.v_head_dim)
        output = take(f"{prefix}o_proj.weight", hidden, spec.num_heads * shape.v_head_dim, part=(slice(None), columns))
        down = q if bottleneck is None else take(f"{prefix}q_a_proj.weight", bottleneck, hidden)
        return cls(
            shape=shape,
            num_heads=len(heads),
            scale=_scale(spec, shape),
            first=fuse([down, kv]),
            q_norm=None if bottleneck is None else take(f"{prefix}q_a_layernorm.weight", bottleneck),
            q_up=None if bottleneck is None else fuse([q]),
            kv_norm=take(f"{prefix}kv_a_layernorm.weight", rank),
            k_up=k_up.contiguous(),
            v_up=v_up.contiguous(),
            o=fuse([output]),
        )

    def project(self, h: torch.Tensor, angles: Angles) -> Projected:
        """Queries [num_tokens, num_heads, qk_head_dim]; one plane, [num_tokens, 1, kv_lora_rank + rope_dim]."""
        shape = self.shape
        found = self.first(h)
        rest = found.shape[1] - shape.cached_dim
        q, latent, key = torch.split(found, [rest, shape.kv_lora_rank, shape.qk_rope_head_dim], dim=1)
        if self.q_up is not None and self.q_norm is not None:
            q = self.q_up(rms_norm(q, self.q_norm, NORM_EPS))
        q = q.reshape(len(h), self.num_heads, shape.qk_head_dim)
        plain, rotated = self._parts(q)
        q = torch.cat((plain, rotate(rotated, angles)), dim=-1)
        latent = rms_norm(latent, self.kv_norm, NORM_EPS)[:, None]
        return Projected(q, (torch.cat((latent, rotate(key[:, None], angles)), dim=-1),))

    def _parts(self, q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each head's query, what is not rotated and what is."""
        return q[..., : self.shape.qk_nope_head_dim], q[..., self.shape.qk_nope_head_dim :]

    def attend(self, projected: Projected, batch: Batch, cache: KVCache, layer: int) -> torch.Tensor:
        q, (cached,) = projected
        parts = [self._decodes(q[group.begin : group.end], cache, layer, group) for group in batch.decodes]
        parts += [self._chunk(q[chunk.rows], cached[chunk.rows], cache, layer, chunk) for chunk in batch.chunks]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return self.o(out.flatten(1))

    def _decodes(self, q: torch.Tensor, cache: KVCache, layer: int, group: DecodeGroup) -> torch.Tensor:
        """``q`` [batch, num_heads, qk_head_dim] against the latents as they are; [batch, num_heads, v_head_dim]."""
        (cached,) = cache.read(layer, group.tables)  # [batch, max_tokens, 1, cached_dim]
        cached = cached.transpose(1, 2)
        plain, rotated = self._parts(q)
        absorbed = torch.einsum("bhd,hdr->bhr", plain, self.k_up)
        # All heads read the one latent: they stand where SDPA expects successive queries.
        queries = torch.cat((absorbed, rotated), dim=-1)[:, None]  # [batch, 1, num_heads, cached_dim]
        # Fused kernels want values as wide as keys: the cached vectors serve as both, and what is too much is cut off.
        out = F.scaled_dot_product_attention(queries, cached, cached, attn_mask=group.mask, scale=self.scale)
        return torch.einsum("bhr,hvr->bhv", out[:, 0, :, : self.shape.kv_lora_rank], self.v_up)

    def _chunk(
        self, q: torch.Tensor, cached: torch.Tensor, cache: KVCache, layer: int, chunk: ChunkView
    ) -> torch.Tensor:
        """``q`` [n, num_heads, qk_head_dim] against the chunk and what lies before it; [n, num_heads, v_head_dim]."""
        if chunk.start:
            (whole,) = cache.read(layer, chunk.table)
            cached = whole[: chunk.context_len]
        latent, key = cached[:, 0, : self.shape.kv_lora_rank], cached[:, 0, self.shape.kv_lora_rank :]
        plain = latent @ self.k_up.transpose(1, 2)  # [num_heads, context, qk_nope_head_dim]
        k = torch.cat((plain, key.expand(self.num_heads, -1, -1)), dim=-1)
        v = latent @ self.v_up.transpose(1, 2)
        wide = max(0, self.shape.qk_head_dim - self.shape.v_head_dim)  # zeros that a fused kernel wants, as above
        out = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k[None],
            F.pad(v, (0, wide))[None],
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=self.scale,
        )
        return out[0, :, :, : self.shape.v_head_dim].transpose(0, 1)


def _scale(spec: ModelSpec, shape: LatentShape) -> float:
    """``1 / sqrt(qk_head_dim)``; DeepSeek sharpens it where YaRN stretches the context."""
    scale: float = shape.qk_head_dim**-0.5
    scaling = spec.rope_scaling
    if scaling is not None and scaling.mscale_all_dim:
        scale *= yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2
    return scale


def _pair_halves(rows: torch.Tensor, shape: LatentShape) -> torch.Tensor:
    """The last ``qk_rope_head_dim`` rows of ``rows`` [heads, out, in], reordered to the halves that ``rotate`` pairs.

    Checkpoints hold pairs side by side. Queries and keys are reordered alike, so no product of theirs changes.
    """
    if not shape.rope_interleave:
        return rows
    plain, rotated = rows[:, : -shape.qk_rope_head_dim], rows[:, -shape.qk_rope_head_dim :]
    return torch.cat((plain, rotated[:, 0::2], rotated[:, 1::2]), dim=1)
