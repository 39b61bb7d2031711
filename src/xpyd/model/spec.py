"""ModelSpec: the shape of a decoder, and the KV bytes, FLOPs and parameters that follow from it.

Floor 0: plain numbers, so that the cost model and the schedulers can use it without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Ge, Gt

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

Positive = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class RopeScaling:
    """RoPE frequency scaling, named as in Hugging Face ``config.json``."""

    rope_type: Literal["linear", "llama3"]
    factor: Annotated[float, Ge(1.0)]
    low_freq_factor: Annotated[float, Gt(0)] = 1.0
    high_freq_factor: Annotated[float, Gt(0)] = 4.0
    original_max_position_embeddings: Positive = 8192


@dataclass(frozen=True)
class ModelSpec:
    """A decoder's shape. ``latent_dim`` > 0 means multi-head latent attention (cost model only, so far).

    ``checkpoint`` is a Hugging Face folder (config.json + safetensors); where it is set, the folder's own shape is
    used and this one is only a name. ``seed`` makes random weights.
    """

    name: str
    num_layers: Positive
    hidden_size: Positive
    num_heads: Positive
    num_kv_heads: Positive
    head_dim: Positive
    intermediate_size: Positive
    vocab_size: Positive
    max_position_embeddings: Positive = 32768
    rope_theta: Annotated[float, Gt(0)] = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: Annotated[float, Gt(0)] = 1e-5
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    sliding_window: Positive | None = None
    latent_dim: Annotated[int, Ge(0)] = 0
    rope_dim: Annotated[int, Ge(0)] = 0
    dtype: Dtype = "float32"
    checkpoint: str | None = None
    seed: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}; "
                "grouped-query attention shares each KV head among equally many query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; RoPE rotates pairs, use an even head_dim")

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    def kv_bytes_per_token(self, tensor_parallel: int = 1) -> int:
        """KV bytes that one token takes, summed over the ranks of an instance.

        GQA and MHA: ``2 * layers * kv_heads * head_dim * bytes``; MLA: ``layers * (latent_dim + rope_dim) * bytes``
        (science.md section 3). With ``tensor_parallel`` above ``num_kv_heads`` heads are replicated and counted;
        MLA's latent is replicated on every rank.
        """
        if self.latent_dim:
            return self.num_layers * (self.latent_dim + self.rope_dim) * self.dtype_bytes * tensor_parallel
        heads = max(self.num_kv_heads, tensor_parallel)
        return 2 * self.num_layers * heads * self.head_dim * self.dtype_bytes

    def block_bytes(self, block_size: int) -> int:
        """Bytes of one KV block (``block_size`` tokens) in one layer: K and V together."""
        return block_size * self.kv_bytes_per_token() // self.num_layers

    def num_params(self) -> int:
        """Parameters of the decoder: embeddings, attention and MLP of every layer, norms and head."""
        attention = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        norms = 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + embeddings + self.hidden_size

    def flops(self, num_tokens: int, context_len: int) -> float:
        """Forward FLOPs for ``num_tokens`` new tokens that end at ``context_len``.

        Two per weight and token in the layers' matrix products (the head counts one token), plus
        ``4 * num_heads * head_dim`` per layer for each (query, key) pair under the causal mask.
        """
        per_layer = self.hidden_size * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        per_layer += 3 * self.hidden_size * self.intermediate_size
        pairs = num_tokens * context_len - num_tokens * (num_tokens - 1) / 2
        linear = 2.0 * num_tokens * self.num_layers * per_layer + 2.0 * self.hidden_size * self.vocab_size
        return linear + 4.0 * self.num_layers * self.num_heads * self.head_dim * pairs


@dataclass(frozen=True)
class Shard:
    """Which part of a model rank ``rank`` of an instance of ``width`` tensor-parallel ranks holds.

    Query heads and MLP columns are divided (arXiv:1909.08053). KV heads are divided too; where there are more ranks
    than KV heads, ``width / num_kv_heads`` neighbouring ranks hold the same one. The embedding and norms are whole on
    every rank; the head's vocabulary is divided.
    """

    rank: int = 0
    width: int = 1

    def part(self, total: int) -> range:
        """This rank's share of ``total`` things in order: equal shares, or as near as whole numbers get."""
        return range(total * self.rank // self.width, total * (self.rank + 1) // self.width)

    def kv_heads(self, num_kv_heads: int) -> range:
        """The KV heads of this rank: its share, or the one that it has a copy of."""
        if self.width <= num_kv_heads:
            return self.part(num_kv_heads)
        head = self.rank * num_kv_heads // self.width
        return range(head, head + 1)

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The model that this rank computes: fewer heads and columns. Raises ValueError where they do not divide."""
        if self.width == 1:
            return spec
        for key in ("num_heads", "intermediate_size"):
            if getattr(spec, key) % self.width:
                raise ValueError(
                    f"model.{key}={getattr(spec, key)} of {spec.name} does not divide among {self.width} "
                    "tensor-parallel ranks; choose placement.prefill_tp, decode_tp and colocated_tp that divide it"
                )
        if spec.num_kv_heads % self.width and self.width % spec.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads={spec.num_kv_heads} of {spec.name} neither divides among {self.width} "
                f"tensor-parallel ranks nor repeats evenly; choose placement.prefill_tp, decode_tp and colocated_tp "
                "that divide it or are multiples of it"
            )
        return replace(
            spec,
            num_heads=spec.num_heads // self.width,
            num_kv_heads=len(self.kv_heads(spec.num_kv_heads)),
            intermediate_size=spec.intermediate_size // self.width,
        )
