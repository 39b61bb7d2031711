"""Shapes of a decoder's parts: scaled RoPE, latent attention, experts. Named as in Hugging Face ``config.json``.

Floor 0: plain numbers. ``model/spec`` puts them together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

Positive = Annotated[int, Gt(0), Lt(2**31)]


@dataclass(frozen=True)
class RopeScaling:
    """RoPE frequency scaling. Settings that a ``rope_type`` does not read are left alone, as the published files do."""

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: Annotated[float, Ge(1.0)]
    low_freq_factor: Annotated[float, Gt(0)] = 1.0
    high_freq_factor: Annotated[float, Gt(0)] = 4.0
    original_max_position_embeddings: Positive = 8192
    # yarn only (arXiv:2309.00071)
    beta_fast: Annotated[float, Gt(0)] = 32.0
    beta_slow: Annotated[float, Gt(0)] = 1.0
    mscale: Annotated[float, Ge(0)] = 0.0  # 0: not given
    mscale_all_dim: Annotated[float, Ge(0)] = 0.0
    attention_factor: Annotated[float, Gt(0)] | None = None
    truncate: bool = True


@dataclass(frozen=True)
class LatentShape:
    """Multi-head latent attention (DeepSeek V2, arXiv:2405.04434): one cached vector per token, shared by all heads.

    It holds ``kv_lora_rank`` numbers that keys and values are made of, and ``qk_rope_head_dim`` of a rotated key.
    """

    kv_lora_rank: Positive
    qk_nope_head_dim: Positive  # of a query or key: the part that is not rotated
    qk_rope_head_dim: Positive  # the part that is
    v_head_dim: Positive
    q_lora_rank: Positive | None = None  # queries through a bottleneck of this width
    rope_interleave: bool = True  # checkpoints hold rotated pairs side by side, else in two halves

    def __post_init__(self) -> None:
        if self.qk_rope_head_dim % 2:
            raise ValueError(f"qk_rope_head_dim={self.qk_rope_head_dim} is odd; RoPE rotates pairs, use an even number")

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def cached_dim(self) -> int:
        """Numbers per token and layer in the cache."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def expansion_weights(self, num_heads: int) -> int:
        """Weights that make keys and values from the latent."""
        return self.kv_lora_rank * num_heads * (self.qk_nope_head_dim + self.v_head_dim)

    def weights(self, hidden_size: int, num_heads: int) -> int:
        """Weights of one layer's matrices."""
        if self.q_lora_rank is None:
            queries = hidden_size * num_heads * self.qk_head_dim
        else:
            queries = self.q_lora_rank * (hidden_size + num_heads * self.qk_head_dim)
        output = num_heads * self.v_head_dim * hidden_size
        return queries + hidden_size * self.cached_dim + self.expansion_weights(num_heads) + output


@dataclass(frozen=True)
class ExpertsShape:
    """A mixture of experts in place of the MLP: a router picks ``num_experts_per_tok`` of ``num_experts`` per token.

    ``topk_method`` is DeepSeek's word. ``greedy``: the largest softmax scores. ``group_limited_greedy`` (V2): those
    within the ``topk_group`` of ``n_group`` groups whose best expert is best. ``noaux_tc`` (V3, arXiv:2412.19437):
    sigmoid scores; a learned bias takes part in the choice, but not in the weights; a group counts by its best two.
    """

    num_experts: Positive
    num_experts_per_tok: Positive
    moe_intermediate_size: Positive  # columns of one expert
    norm_topk_prob: bool = False  # the chosen experts' scores are made to sum to one
    topk_method: Literal["greedy", "group_limited_greedy", "noaux_tc"] = "greedy"
    n_group: Positive = 1
    topk_group: Positive = 1
    routed_scaling_factor: Annotated[float, Gt(0)] = 1.0
    shared_intermediate_size: Annotated[int, Ge(0)] = 0  # columns of the expert that every token visits; 0: none
    shared_expert_gate: bool = False  # Qwen2-MoE: its output is scaled by a sigmoid of the token
    first_k_dense_replace: Annotated[int, Ge(0)] = 0  # the first layers that keep a dense MLP

    def __post_init__(self) -> None:
        if self.num_experts % self.n_group:
            raise ValueError(
                f"n_group={self.n_group} does not divide num_experts={self.num_experts}; groups are of equal size"
            )
        size = self.num_experts // self.n_group
        if self.topk_group > self.n_group or self.num_experts_per_tok > self.topk_group * size:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} from topk_group={self.topk_group} of "
                f"n_group={self.n_group} groups of {size} experts: there are not so many; lower the first or raise "
                "topk_group"
            )
        if self.topk_method == "greedy" and self.n_group > 1:
            raise ValueError(
                f"n_group={self.n_group} with topk_method=greedy, which knows no groups; set n_group=1 or "
                "topk_method=group_limited_greedy"
            )
        if self.topk_method == "noaux_tc" and size < 2:
            raise ValueError(f"n_group={self.n_group}: topk_method=noaux_tc rates a group by its best two experts")
        if self.shared_expert_gate and not self.shared_intermediate_size:
            raise ValueError(
                "shared_expert_gate=true with shared_intermediate_size=0: there is no shared expert to scale; set both "
                "or neither"
            )

    def weights(self, hidden_size: int, num_experts: float) -> float:
        """Weights of one layer: router, shared expert, and ``num_experts`` of the others."""
        shared = 3 * self.shared_intermediate_size + self.shared_expert_gate
        return hidden_size * (self.num_experts + shared + 3 * self.moe_intermediate_size * num_experts)

    def expected_hit(self, num_tokens: int) -> float:
        """How many experts of a layer a step of ``num_tokens`` visits, each chosen alike: ``E (1 - (1 - k/E)^n)``."""
        missed = 1 - self.num_experts_per_tok / self.num_experts
        return float(self.num_experts * (1 - missed**num_tokens))
