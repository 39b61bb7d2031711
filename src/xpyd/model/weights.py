"""A decoder's weights: random from a seed, or from the safetensors of a Hugging Face folder; or one rank's part.

Projections that read the same input are fused (q, k, v; gate, up): one matrix product instead of three and two.
A rank of a tensor-parallel instance keeps the heads of its attention, the columns of its MLP and the rows of the head
that its shard names: exact slices of the whole model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from xpyd.kv.cache import DTYPES
from xpyd.model.attention import GroupedAttention
from xpyd.model.checkpoint import Checkpoint
from xpyd.model.experts import Experts
from xpyd.model.latent import LatentAttention
from xpyd.model.layer import Attention, Layer, Mlp
from xpyd.model.mlp import DenseMlp
from xpyd.model.shard import Shard
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import Linear, Part, Shape, Take, rows_of

Get = Callable[[str, Shape, Part], torch.Tensor]  # (Hugging Face name, shape of the whole, part) -> that part


@dataclass(frozen=True)
class Weights:
    embedding: torch.Tensor  # [vocab_size, hidden_size]
    layers: list[Layer]
    norm: torch.Tensor
    head: Linear  # [vocab_size, hidden_size]; rows of the embedding where tied


def load_weights(
    spec: ModelSpec,
    device: str = "cpu",
    shard: Shard | None = None,
    layers: range | None = None,
    keep: Callable[[Layer], Layer] | None = None,
) -> Weights:
    """The weights of ``spec``, or those of one ``shard`` or of some of its ``layers``, in its dtype.

    A stage has the embedding where it has the first layer, and the head where it has the last; else they are empty.
    ``keep`` says what is kept of a layer as soon as it is loaded.

    Raises CheckpointError for a folder with something missing or misshapen, ValueError for a shape that cannot be run.
    """
    spec.check_runs()
    shard, wanted = shard or Shard(), layers if layers is not None else range(spec.num_layers)
    get = _random(spec, device) if spec.checkpoint is None else Checkpoint(Path(spec.checkpoint)).get
    dtype = DTYPES[spec.dtype]

    def take(name: str, *shape: int, part: Part = (), wide: bool = False) -> torch.Tensor:
        return get(name, shape, part).to(device=device, dtype=torch.float32 if wide else dtype)

    with torch.inference_mode():
        embedding = take("model.embed_tokens.weight", spec.vocab_size, spec.hidden_size)
        held = [keep(layer) if keep is not None else layer for layer in _layers(spec, shard, take, wanted)]
        norm = take("model.norm.weight", spec.hidden_size)
        rows = rows_of(shard.part(spec.vocab_size))
        tied = spec.tie_word_embeddings
        head = embedding[rows] if tied else take("lm_head.weight", spec.vocab_size, spec.hidden_size, part=(rows,))
    empty = embedding.new_empty((0, spec.hidden_size))
    if spec.num_layers - 1 not in wanted:
        head = empty
    return Weights(embedding if 0 in wanted else empty, held, norm, Linear(head))


def _layers(spec: ModelSpec, shard: Shard, take: Take, wanted: range) -> Iterator[Layer]:
    """Random weights come from one stream: those of the other layers are drawn too, and dropped."""
    for index in range(spec.num_layers):
        if spec.checkpoint is None or index in wanted:
            layer = _layer(spec, shard, take, index)
            if index in wanted:
                yield layer


def _layer(spec: ModelSpec, shard: Shard, take: Take, index: int) -> Layer:
    prefix = f"model.layers.{index}."
    return Layer(
        input_norm=take(f"{prefix}input_layernorm.weight", spec.hidden_size),
        attention=_attention(spec, shard, take, f"{prefix}self_attn."),
        post_norm=take(f"{prefix}post_attention_layernorm.weight", spec.hidden_size),
        mlp=_mlp(spec, shard, take, f"{prefix}mlp.", index),
    )


def _attention(spec: ModelSpec, shard: Shard, take: Take, prefix: str) -> Attention:
    if spec.latent is not None:
        return LatentAttention.load(take, prefix, spec, spec.latent, shard)
    return GroupedAttention.load(take, prefix, spec, shard)


def _mlp(spec: ModelSpec, shard: Shard, take: Take, prefix: str, index: int) -> Mlp:
    if spec.experts is not None and index >= spec.num_dense_layers:
        return Experts.load(take, prefix, spec.hidden_size, spec.experts, shard.of_experts)
    return DenseMlp.load(take, prefix, spec.hidden_size, spec.intermediate_size, shard)


def _random(spec: ModelSpec, device: str) -> Get:
    """Seeded weights, the same on every rank: each draws whole tensors and keeps its part.

    Norms are ones, the rest is normal. Matrices have variance 1 / fan-in, which keeps the scale of activations. The
    head has twice that deviation, so that logits spread and greedy margins are not tiny; a tied embedding has not, or
    each token would predict itself. A router's correction bias is small beside its scores, or it alone would choose.
    A GPU draws other numbers than a CPU from the same seed, in a hundredth of the time.
    """
    where = device if device.startswith("cuda") else "cpu"
    generator = torch.Generator(where).manual_seed(spec.seed)

    def get(name: str, shape: Shape, part: Part) -> torch.Tensor:
        if "norm" in name:
            return torch.ones(shape, device=where)[part]
        scale: float = shape[-1] ** -0.5
        if name == "lm_head.weight":
            scale *= 2.0
        elif name.endswith("correction_bias"):
            scale = 0.1
        elif name.endswith("bias") or ("embed_tokens" in name and not spec.tie_word_embeddings):
            scale = 1.0
        return torch.randn(shape, generator=generator, device=where)[part] * scale

    return get
