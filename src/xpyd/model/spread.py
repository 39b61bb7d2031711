"""Expert parallelism for serving: attention divided by heads, whole experts spread over the ranks of an instance.

KV lies as under tensor parallelism, so hand-offs, prefix cache and schedulers know nothing of it. Between attention and
experts each rank has its own share of the step's tokens (sequence parallelism, arXiv:2205.05198): before attention the
ranks gather all tokens, after it each gets the sums of its own, which together move what one sum of all would. Its own
tokens it sends to the ranks that hold their experts (``expert_parallel``), and no token's routing is computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from xpyd.model.batch import Batch
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.model.expert_parallel import ParallelExperts
from xpyd.model.expert_placement import contiguous
from xpyd.model.experts import Experts
from xpyd.model.group import Group
from xpyd.model.layer import Layer
from xpyd.model.runner import ModelRunner
from xpyd.model.shard import Member
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import rms_norm
from xpyd.model.weights import load_weights
from xpyd.placement import Division


class SpreadRunner(ModelRunner):
    """One rank; all ranks call ``run`` with the same segments, the leader draws. Neighbouring experts lie together."""

    def __init__(self, group: Group, spec: ModelSpec, num_blocks: int, block_size: int, **options: Any) -> None:
        spec, member = resolve_spec(spec), Member(group.rank, Division("ep", group.width))
        member.of(spec)  # refused before anything is loaded
        self._group = group
        weights = load_weights(spec, options.get("device", "cpu"), member.shard, keep=self._keep)
        super().__init__(spec, num_blocks, block_size, weights=weights, member=member, **options)

    def _keep(self, layer: Layer) -> Layer:
        """This rank's experts of a layer."""
        if not isinstance(layer.mlp, Experts):
            return layer
        owners = contiguous(len(layer.mlp.experts), self._group.width)
        return replace(layer, mlp=ParallelExperts.of(layer.mlp, owners, self._group, overlap=True))

    def _forward(self, batch: Batch, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        group, eps = self._group, self.spec.rms_norm_eps
        parts = [replace(group.shard, rank=rank).part(len(batch.tokens)) for rank in range(group.width)]
        counts, own = [len(part) for part in parts], parts[group.rank]
        x = self._weights.embedding[batch.tokens[own.start : own.stop]]  # [own tokens, hidden_size]
        angles = self._rope.angles(batch.positions, x.dtype)
        for index, layer in enumerate(self._weights.layers):
            h = group.gather(rms_norm(x, layer.input_norm, eps), counts)
            projected = layer.attention.project(h, angles)
            self.cache.write(index, batch.slots, *projected.planes)
            if on_layer is not None:
                on_layer(index)
            x = x + group.scatter_sum(layer.attention.attend(projected, batch, self.cache, index), counts)
            h = rms_norm(x, layer.post_norm, eps)
            if isinstance(layer.mlp, ParallelExperts):
                x = x + layer.mlp.run(h)
            else:
                x = x + group.scatter_sum(layer.mlp.run(group.gather(h, counts)), counts)
        return self._logits_of(x, own, batch.sampled_rows)

    def _logits_of(self, x: torch.Tensor, own: range, sampled_rows: torch.Tensor) -> torch.Tensor:
        """The leader's [num_samples, vocab_size], float32, from the rows ``own`` of the last layer's state."""
        mine = (sampled_rows >= own.start) & (sampled_rows < own.stop)
        last = x.new_zeros((len(sampled_rows), x.shape[1]))
        last[mine] = x[sampled_rows[mine] - own.start]
        h = rms_norm(self._group.sum(last), self._weights.norm, self.spec.rms_norm_eps)
        return self._group.join(self._weights.head(h).float(), self.spec.vocab_size)
