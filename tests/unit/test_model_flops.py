"""The FLOPs that the cost model reckons with are those of the matrix products that a step really runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xpyd import native
from xpyd.model import tensors
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.shapes import ExpertsShape, LatentShape
from xpyd.model.spec import ModelSpec

DENSE = ModelSpec("dense", 3, 32, 4, 2, 8, 64, 97)
EXPERTS = ExpertsShape(8, 2, 24, shared_intermediate_size=16, first_k_dense_replace=1)
LATENT = LatentShape(12, 6, 4, 10, q_lora_rank=20)
MODELS = {
    "dense": (DENSE, 2 * (8 + 8)),
    "experts": (replace(DENSE, experts=EXPERTS), 2 * (8 + 8)),
    "latent": (replace(DENSE, num_kv_heads=1, head_dim=10, latent=LATENT, experts=EXPERTS), 2 * (10 + 10)),
}  # and the FLOPs of one (query, key) pair of one head, where keys and values are expanded


def by_products(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None = None, **_: Any
) -> torch.Tensor:
    """Attention as two matrix products that the counter sees; unmasked, so it runs every pair."""
    return (q @ k.transpose(-1, -2) * (scale or 1.0)).softmax(-1) @ v


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("start", "num_tokens"), [(0, 16), (16, 16), (31, 1)])
def test_flops_are_those_of_the_products(
    monkeypatch: pytest.MonkeyPatch, name: str, start: int, num_tokens: int
) -> None:
    spec, pair_flops = MODELS[name]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", by_products)
    monkeypatch.setattr(native, "kernels", lambda: None)  # the counter sees products through torch,
    monkeypatch.setattr(tensors, "_packs", lambda weight: False)  # and not those of oneDNN
    engine = ModelRunner(spec, num_blocks=4, block_size=16)
    step = Segment([(7 * i) % 97 for i in range(num_tokens)], start, [0, 1], 0, 0, True)
    with FlopCounterMode(display=False) as counter:
        engine.logits([step])
    masked = num_tokens * (num_tokens - 1) / 2 * spec.num_layers * spec.num_heads * pair_flops
    if spec.latent and num_tokens == 1:  # a decode takes the rotated key for values too, and drops what it gets
        masked += 2 * 4 * spec.num_heads * spec.num_layers * (start + 1)
    combined = 2 * 2 * num_tokens * 32 * 2 if spec.experts else 0  # of the chosen experts' outputs: left out
    assert counter.get_total_flops() == spec.flops(num_tokens, start + num_tokens) + masked + combined
