"""The decoder: RMSNorm, attention over paged KV, an MLP, both added to the residual stream. Layers come from weights.

A step is one packed batch, shape [num_tokens], of decoding sequences and prompt chunks: matrix products run once over
all of its tokens, attention runs by sequence. A rank of a tensor-parallel instance runs the same code on its shard of
the model: it sums what the ranks got after the attention and after the MLP, and joins the logits at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from xpyd.kv.cache import KVCache
from xpyd.model.batch import Batch
from xpyd.model.parallel import Reducer
from xpyd.model.rope import Rope
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import rms_norm
from xpyd.model.weights import Weights


def forward(
    spec: ModelSpec,
    weights: Weights,
    rope: Rope,
    batch: Batch,
    cache: KVCache,
    on_layer: Callable[[int], None] | None,
    reducer: Reducer | None = None,
) -> torch.Tensor:
    """Logits of the sampled rows, shape [num_samples, vocab_size], float32. Writes the batch's KV into the cache.

    ``on_layer(layer)`` is called as soon as that layer's KV is in the pool, before its attention and MLP run.
    With a ``reducer``, ``weights`` are a shard, and only the leader gets the logits of all columns.
    """
    x = run_layers(spec, weights, rope, weights.embedding[batch.tokens], batch, cache, on_layer, reducer)
    logits = logits_of(spec, weights, x, batch)
    return logits if reducer is None else reducer.join(logits, spec.vocab_size)


def run_layers(
    spec: ModelSpec,
    weights: Weights,
    rope: Rope,
    x: torch.Tensor,
    batch: Batch,
    cache: KVCache,
    on_layer: Callable[[int], None] | None,
    reducer: Reducer | None = None,
    gather: Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]] | None = None,
) -> torch.Tensor:
    """The hidden state ``x`` [num_tokens, hidden_size] behind the layers of ``weights``, which may be some of all.

    ``on_layer`` as in ``forward``; layers count from 0 here, as in ``cache``. ``gather`` makes of a layer's planes
    those of all ranks' tokens, whose slots ``batch`` has.
    """
    angles = rope.angles(batch.positions, x.dtype)
    for index, layer in enumerate(weights.layers):
        projected = layer.attention.project(rms_norm(x, layer.input_norm, spec.rms_norm_eps), angles)
        cache.write(index, batch.slots, *(projected.planes if gather is None else gather(projected.planes)))
        if on_layer is not None:
            on_layer(index)
        attended = layer.attention.attend(projected, batch, cache, index)
        x = x + (attended if reducer is None else reducer.sum(attended))
        inner = layer.mlp.run(rms_norm(x, layer.post_norm, spec.rms_norm_eps))
        x = x + (inner if reducer is None else reducer.sum(inner))
    return x


def logits_of(spec: ModelSpec, weights: Weights, x: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of the sampled rows of the last layer's ``x``: [num_samples, rows of the head], float32."""
    return weights.head(rms_norm(x[batch.sampled_rows], weights.norm, spec.rms_norm_eps)).float()
