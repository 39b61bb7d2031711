"""A mixture of experts in place of the MLP: a router sends each token to a few of many small MLPs.

Tokens are sorted by expert, and each expert that is hit runs once over its own. The columns of every expert are divided
among the ranks of an instance, like a dense MLP's: all ranks route alike, and no token travels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from xpyd.model.mlp import DenseMlp
from xpyd.model.shapes import ExpertsShape
from xpyd.model.shard import Shard
from xpyd.model.tensors import Take


@dataclass(frozen=True)
class Router:
    """In float32 throughout: a rounded score would send a token elsewhere."""

    shape: ExpertsShape
    weight: torch.Tensor  # [num_experts, hidden_size]
    correction_bias: torch.Tensor | None  # [num_experts]

    def route(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights and the numbers of each token's experts, both [num_tokens, num_experts_per_tok]."""
        shape = self.shape
        logits = F.linear(h.float(), self.weight)
        scores = logits.softmax(-1) if self.correction_bias is None else logits.sigmoid()
        ranked = scores if self.correction_bias is None else scores + self.correction_bias
        if shape.n_group > 1:
            ranked = self._within_best_groups(ranked)
        chosen = ranked.topk(shape.num_experts_per_tok, dim=-1).indices
        weights = scores.gather(1, chosen)
        if shape.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * shape.routed_scaling_factor, chosen

    def _within_best_groups(self, ranked: torch.Tensor) -> torch.Tensor:
        """``ranked`` [num_tokens, num_experts], with minus infinity outside each token's ``topk_group`` groups."""
        groups = ranked.view(len(ranked), self.shape.n_group, -1)
        num_best = 1 if self.correction_bias is None else 2
        best = groups.topk(num_best, dim=-1).values.sum(-1).topk(self.shape.topk_group, dim=-1).indices
        outside = torch.ones(groups.shape[:2], dtype=torch.bool, device=ranked.device).scatter_(1, best, False)
        return groups.masked_fill(outside[..., None], float("-inf")).flatten(1)


@dataclass(frozen=True)
class Experts:
    """Matrices are [out, in], one per expert; columns are those of the rank's shard."""

    router: Router
    experts: list[DenseMlp]
    shared: DenseMlp | None
    shared_gate: torch.Tensor | None  # [1, hidden_size]

    @classmethod
    def load(cls, take: Take, prefix: str, hidden: int, shape: ExpertsShape, shard: Shard) -> Experts:
        """This rank's columns of one layer's experts; ``shape`` is the whole model's."""
        inner, shared = shape.moe_intermediate_size, shape.shared_intermediate_size
        biased = shape.topk_method == "noaux_tc"
        return cls(
            Router(
                shape,
                take(f"{prefix}gate.weight", shape.num_experts, hidden, wide=True),
                take(f"{prefix}gate.e_score_correction_bias", shape.num_experts, wide=True) if biased else None,
            ),
            [
                DenseMlp.load(take, f"{prefix}experts.{number}.", hidden, inner, shard)
                for number in range(shape.num_experts)
            ],
            DenseMlp.load(take, f"{prefix}shared_experts.", hidden, shared, shard) if shared else None,
            take(f"{prefix}shared_expert_gate.weight", 1, hidden) if shape.shared_expert_gate else None,
        )

    def run(self, h: torch.Tensor) -> torch.Tensor:
        """``h`` [num_tokens, hidden_size]; the same shape back, or this rank's summand of it."""
        weights, chosen = self.router.route(h)
        out = torch.einsum("tk,tkh->th", weights.to(h.dtype), self._visit(h, chosen))
        if self.shared is None:
            return out
        shared = self.shared.run(h)
        return out + (shared if self.shared_gate is None else F.linear(h, self.shared_gate).sigmoid() * shared)

    def _visit(self, h: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """What each token's experts make of it, [num_tokens, num_experts_per_tok, hidden_size]."""
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        sizes = flat.bincount(minlength=len(self.experts)).tolist()
        made = h.new_empty((len(flat), h.shape[1]))
        for expert, places in zip(self.experts, torch.split(order, sizes), strict=True):
            if len(places):
                made[places] = expert.run(h[places // chosen.shape[1]])
        return made.view(*chosen.shape, -1)
