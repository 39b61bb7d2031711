"""ModelSpec: the shape of a decoder, and the KV bytes, FLOPs and parameters that follow from it.

Floor 0: plain numbers, so that the cost model and the schedulers can use it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from xpyd.model.shapes import ExpertsShape, LatentShape, Positive, RopeScaling

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class ModelSpec:
    """A decoder's shape. Attention is grouped-query, or ``latent``; MLPs are dense, or (all but the first) ``experts``.

    ``checkpoint`` is a Hugging Face folder (config.json + safetensors); where it is set, the folder's own shape is
    used and this one is only a name. ``seed`` makes random weights.
    """

    name: str
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    num_kv_heads: Positive  # 1 with latent attention: its one vector per token
    head_dim: Positive  # of a query; of keys and values too, except with latent attention
    intermediate_size: Positive  # of dense layers
    vocab_size: Positive
    max_position_embeddings: Positive = 32768
    rope_theta: Annotated[float, Gt(0)] = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: Annotated[float, Gt(0)] = 1e-5
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    sliding_window: Positive | None = None
    sliding_window_every: Positive = 1  # the window holds in every so manyth layer, the first included
    latent: LatentShape | None = None
    experts: ExpertsShape | None = None
    dtype: Dtype = "float32"
    checkpoint: str | None = None
    seed: Annotated[int, Ge(0)] = 0
    shape_only: str | None = None  # what of the model is not implemented: it can be reckoned with, but not run

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                "grouped-query attention shares each KV head among equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs, use an even head_dim")
        if self.sliding_window_every > 1 and (self.sliding_window is None or self.shape_only is None):
            raise ValueError(
                f"sliding_window_every={self.sliding_window_every} with sliding_window={self.sliding_window}: a mix of "
                "windowed and full layers cannot be run; set sliding_window_every=1, or sliding_window and shape_only"
            )
        if self.latent is not None:
            self._check_latent(self.latent)

    def _check_latent(self, latent: LatentShape) -> None:
        if self.num_kv_heads != 1:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} with latent attention, which caches one vector per token for all "
                "heads; set num_kv_heads=1"
            )
        if self.head_dim != latent.qk_head_dim:
            raise ValueError(
                f"head_dim={self.head_dim} is not latent.qk_nope_head_dim={latent.qk_nope_head_dim} + "
                f"latent.qk_rope_head_dim={latent.qk_rope_head_dim}; set head_dim={latent.qk_head_dim}"
            )
        if self.qk_norm or self.qkv_bias:
            raise ValueError(
                f"qk_norm={self.qk_norm}, qkv_bias={self.qkv_bias}: latent attention has neither; set both to false"
            )

    def check_runs(self) -> None:
        """Raises ValueError for a shape that can be reckoned with, but not run."""
        if self.shape_only is not None:
            raise ValueError(
                f"model={self.name} is a shape for experiments.economics only: {self.shape_only} not implemented; "
                "choose a model that runs, see docs/models.md"
            )

    def check_expert_parallel(self, width: int) -> None:
        """Raises ValueError where there are no experts, or fewer than ``width`` ranks."""
        num_experts = self.experts.num_experts if self.experts is not None else 0
        if num_experts < width:
            raise ValueError(
                f"model={self.name} has {num_experts} experts for {width} expert-parallel ranks; choose a model with "
                f"at least {width}, such as model=tiny_moe, or fewer ranks"
            )

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @property
    def kv_planes(self) -> int:
        """What a token leaves per KV head in a layer's cache: keys and values, or one latent vector."""
        return 2 if self.latent is None else 1

    @property
    def kv_head_dim(self) -> int:
        """Numbers of one plane of one KV head."""
        return self.head_dim if self.latent is None else self.latent.cached_dim

    @property
    def rope_dim(self) -> int:
        """Numbers of a query or key that are rotated."""
        return self.head_dim if self.latent is None else self.latent.qk_rope_head_dim

    @property
    def num_dense_layers(self) -> int:
        """Layers with a dense MLP; they come first."""
        return self.num_layers if self.experts is None else min(self.num_layers, self.experts.first_k_dense_replace)

    def kv_bytes_per_token(self, tensor_parallel: int = 1) -> int:
        """KV bytes that one token takes, summed over the ranks of an instance.

        GQA and MHA: ``2 * layers * kv_heads * head_dim * bytes``; MLA: ``layers * (kv_lora_rank + qk_rope_head_dim) *
        bytes`` (science.md section 3). With ``tensor_parallel`` above ``num_kv_heads`` heads are replicated and
        counted; MLA's latent is replicated on every rank. Windowed layers keep every token too.
        """
        heads = max(self.num_kv_heads, tensor_parallel)
        return self.kv_planes * self.num_layers * heads * self.kv_head_dim * self.dtype_bytes

    def block_bytes(self, block_size: int) -> int:
        """Bytes of one KV block (``block_size`` tokens) in one layer, all planes together."""
        return block_size * self.kv_bytes_per_token() // self.num_layers

    def num_params(self) -> int:
        """Parameters of the decoder: embeddings, attention and MLP of every layer, norms, biases and head."""
        return int(self._params(self.experts.num_experts if self.experts else 0))

    def num_active_params(self) -> int:
        """Those that one token meets: all but the experts that it is not sent to."""
        return int(self._params(self._num_chosen))

    def step_weight_bytes(self, num_tokens: int) -> float:
        """Weights that a step of ``num_tokens`` tokens reads, in bytes: of the experts, as many as it is likely to hit.

        Routing is taken as even (``ExpertsShape.expected_hit``): skewed routing hits fewer.
        """
        num_hit = self.experts.expected_hit(num_tokens) if self.experts else 0
        return self._params(num_hit) * self.dtype_bytes

    def flops(self, num_tokens: int, context_len: int) -> float:
        """Forward FLOPs for ``num_tokens`` new tokens that end at ``context_len``.

        Two per weight and token in the layers' matrix products, of the experts that a token is sent to (the head
        counts one token), plus for each (query, key) pair that the mask allows two per number of a query and of a
        value: ``4 * num_heads * head_dim`` per layer where they are of one size. Latent attention expands keys and
        values of the whole context for a prompt chunk; a decode (one token) reads the latent as it is, and its query
        and its result go through the same weights instead (arXiv:2405.04434, section 2.1.2).
        """
        linear = 2.0 * num_tokens * self._layer_weights(self._num_chosen) + 2.0 * self.hidden_size * self.vocab_size
        sizes = 2 * self.head_dim  # of a query and a value
        if self.latent is not None and num_tokens == 1:
            sizes = self.latent.cached_dim + self.latent.kv_lora_rank
        elif self.latent is not None:
            sizes = self.latent.qk_head_dim + self.latent.v_head_dim
            expanded = self.num_layers * self.latent.expansion_weights(self.num_heads)
            linear += 2.0 * (context_len - num_tokens) * expanded
        windowed = self._num_windowed_layers
        pairs = (self.num_layers - windowed) * _pairs(num_tokens, context_len, None)
        pairs += windowed * _pairs(num_tokens, context_len, self.sliding_window)
        return linear + 2.0 * self.num_heads * sizes * pairs

    def kv_read_bytes(self, num_tokens: int, context_len: int) -> float:
        """KV that ``num_tokens`` new tokens of one sequence, ending at ``context_len``, attend to."""
        windowed = self._num_windowed_layers
        seen = min(context_len, (self.sliding_window or context_len) + num_tokens - 1)
        tokens = (self.num_layers - windowed) * context_len + windowed * seen
        return tokens * self.kv_bytes_per_token() / self.num_layers

    @property
    def _num_chosen(self) -> int:
        return self.experts.num_experts_per_tok if self.experts else 0

    @property
    def _num_windowed_layers(self) -> int:
        return 0 if self.sliding_window is None else -(-self.num_layers // self.sliding_window_every)

    def _layer_weights(self, num_experts: float) -> float:
        """Weights of the matrices of all layers, with ``num_experts`` experts in each layer that has some."""
        hidden, dense = self.hidden_size, self.num_dense_layers
        weights: float = self.num_layers * self._attention_weights() + dense * 3 * hidden * self.intermediate_size
        if self.experts is not None:
            weights += (self.num_layers - dense) * self.experts.weights(hidden, num_experts)
        return weights

    def _attention_weights(self) -> int:
        """Of one layer's matrices."""
        if self.latent is not None:
            return self.latent.weights(self.hidden_size, self.num_heads)
        return self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)

    def _params(self, num_experts: float) -> float:
        vectors = 2 * self.hidden_size  # norms and biases of a layer
        if self.latent is not None:
            vectors += self.latent.kv_lora_rank + (self.latent.q_lora_rank or 0)
        vectors += 2 * self.head_dim * self.qk_norm
        vectors += (self.num_heads + 2 * self.num_kv_heads) * self.head_dim * self.qkv_bias
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self._layer_weights(num_experts) + self.num_layers * vectors + embeddings + self.hidden_size


def _pairs(num_tokens: int, context_len: int, window: int | None) -> float:
    """(query, key) pairs of ``num_tokens`` tokens that end at ``context_len``, under the causal mask and the window."""
    pairs = num_tokens * context_len - num_tokens * (num_tokens - 1) / 2
    if window is None:
        return pairs
    last, before = max(0, context_len - window), max(0, context_len - num_tokens - window)
    return pairs - (last * (last + 1) - before * (before + 1)) / 2
