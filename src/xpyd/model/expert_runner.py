"""A rank of an expert-parallel instance: attention over its own sequences, experts shared with the other ranks.

Attention is data-parallel: weights of attention, dense layers and shared experts are whole on every rank, KV is that of
the rank's own sequences alone. In every layer of experts all ranks meet, so they all take every step, with sequences or
without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xpyd.model.checkpoint_config import resolve_spec
from xpyd.model.exchange import Exchange
from xpyd.model.expert_parallel import ParallelExperts
from xpyd.model.expert_placement import contiguous
from xpyd.model.experts import Experts
from xpyd.model.layer import Layer
from xpyd.model.runner import ModelRunner
from xpyd.model.segment import Segment
from xpyd.model.spec import ModelSpec
from xpyd.model.weights import load_weights

Owners = Sequence[Sequence[int]]  # by layer of experts: the rank of each expert


class ExpertRunner(ModelRunner):
    """``run`` and ``logits`` take this rank's own segments, [] where it has none in this step. Collective."""

    def __init__(
        self,
        exchange: Exchange,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        owners: Owners | None = None,
        overlap: bool = True,
        **options: Any,
    ) -> None:
        """``owners``: default neighbouring experts together. The rest as ModelRunner's; raises what it raises."""
        spec = resolve_spec(spec)
        spec.check_expert_parallel(exchange.width)
        self.exchange = exchange
        experts = self._parts(spec, owners, overlap)
        weights = load_weights(spec, options.get("device", "cpu"), keep=experts)
        super().__init__(spec, num_blocks, block_size, weights=weights, **options)
        self.moe_layers = [layer.mlp for layer in weights.layers if isinstance(layer.mlp, ParallelExperts)]

    def visits(self) -> NDArray[np.int64]:
        """What this rank's tokens asked for so far, [num_layers of experts, num_experts]."""
        return np.stack([layer.visits.numpy(force=True) for layer in self.moe_layers])

    def logits(self, segments: Sequence[Segment], on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        if segments:
            return super().logits(segments, on_layer)
        with torch.inference_mode():
            nothing = self._weights.norm.new_empty((0, self.spec.hidden_size))
            for layer in self.moe_layers:
                layer.run(nothing)
        return torch.empty((0, self.spec.vocab_size))

    def _parts(self, spec: ModelSpec, owners: Owners | None, overlap: bool) -> Callable[[Layer], Layer]:
        """What this rank keeps of each layer, in the order of loading."""
        assert spec.experts is not None
        same = contiguous(spec.experts.num_experts, self.exchange.width)
        layers = iter(owners if owners is not None else [same] * spec.num_layers)

        def keep(layer: Layer) -> Layer:
            if not isinstance(layer.mlp, Experts):
                return layer
            return replace(layer, mlp=ParallelExperts.of(layer.mlp, next(layers), self.exchange, overlap))

        return keep
