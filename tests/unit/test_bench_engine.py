"""What `make bench-engine` compares: the right products, the same weights, and ratios inside a repeat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine import gpu, ratios
from benchmarks.engine.arms import EngineArm, Products, TransformersArm, save_checkpoint
from benchmarks.engine.points import MODELS, Point, decode, points, prefill, spec_of
from xpyd.model.runner import Segment
from xpyd.model.spec import ModelSpec

SPEC = ModelSpec("micro", 2, 64, 4, 2, 16, 128, 256)


@pytest.mark.parametrize("point", [decode("micro", 3, 20), prefill("micro", 40), prefill("micro", 600, 300)])
def test_products_are_those_that_the_cost_model_counts(point: Point) -> None:
    products = Products(EngineArm(SPEC, 1, 128).runner)
    with FlopCounterMode(display=False) as counter:
        products.plain(point).run()
        weights = counter.get_total_flops()
        products.attention(point).run()
    attention = counter.get_total_flops() - weights
    if point.kind == "decode":
        assert weights + attention == 3 * SPEC.flops(1, 21)
        return
    pairs = 4 * SPEC.num_layers * SPEC.num_heads * SPEC.head_dim
    n = point.num_tokens
    assert weights == SPEC.flops(n, n) - pairs * n * (n + 1) / 2
    blocks = [(0, 40)] if n == 40 else [(0, 256), (256, 300), (300, 556), (556, 600)]
    assert attention == pairs * sum((end - begin) * end for begin, end in blocks)


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, qk_norm=True, tie_word_embeddings=True)], ids=["llama", "qwen3"])
def test_transformers_runs_the_same_model(tmp_path: Path, spec: ModelSpec) -> None:
    pytest.importorskip("transformers")
    engine = EngineArm(spec, 1, 128)
    with torch.inference_mode():
        for attention in (layer.attention for layer in engine.runner._weights.layers if spec.qk_norm):
            attention.q_norm.uniform_(0.5, 1.5)
            attention.k_norm.uniform_(0.5, 1.5)
    save_checkpoint(engine.runner, tmp_path)
    theirs = TransformersArm(tmp_path, "float32")
    prompt = [(7 * i + 3) % 256 for i in range(33)]
    with torch.inference_mode():
        ours = engine.runner.logits([Segment(prompt, 0, list(range(3)), 0, 0, True)])
        found = theirs._model(torch.tensor([prompt])).logits[0, -1:]
        torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-4)
        for point in (prefill("micro", 33), prefill("micro", 33, 11)):  # what is timed
            for step in (theirs.dynamic(point), theirs.static(point)):
                step.reset()
                assert step.run() == int(ours.argmax())


def test_a_decode_of_transformers_can_be_run_again(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_checkpoint(EngineArm(SPEC, 1, 128).runner, tmp_path)
    theirs, point = TransformersArm(tmp_path, "float32"), decode("micro", 3, 20)
    with torch.inference_mode():
        for step in (theirs.dynamic(point), theirs.static(point)):
            found = []
            for _ in range(3):
                step.reset()
                found.append(step.run())
            assert len(found[0]) == 3
            assert found[0] == found[1] == found[2]


def test_ratios_are_medians_over_repeats() -> None:
    dynamic, static = ratios.RIVALS
    own, onednn, plain = ratios.PRODUCTS
    first = {ratios.ENGINE: 6.0, own: 3.0, onednn: 3.5, plain: 4.0, ratios.ATTENTION: 1.0}
    first |= {dynamic: 9.0, static: 12.0}
    slow = {name: 10 * value for name, value in first.items()} | {plain: 20.0, onednn: 35.0}
    last = first | {ratios.ENGINE: 5.0}
    row = ratios.row_of(decode("micro", 8, 128), [first, slow, last])
    assert row.of_products == pytest.approx(1.5)  # of 6 / 4, 60 / 30 and 5 / 4
    assert row.of_weight_products == pytest.approx(2.0)  # of 6 / 3, 60 / 20 and 5 / 3
    assert (row.cache, row.ahead) == ("dynamic", 1.5)
    assert (row.engine_s, row.transformers_s, row.num_repeats) == (6.0, 9.0, 3)
    assert not row.met
    alone = {name: value for name, value in first.items() if name not in ratios.RIVALS}
    row = ratios.row_of(prefill("micro", 8), [alone | {ratios.ENGINE: 4.4}])
    assert (row.transformers_s, row.ahead, row.met) == (None, None, True)


def test_points_cover_what_is_promised() -> None:
    found = list(points("tiny", quick=False))
    assert {point.batch for point in found if point.kind == "decode"} == {1, 8, 32}
    assert {point.num_tokens for point in found if point.kind == "prefill"} == {128, 512, 2048}
    assert prefill("tiny", 500, 200).pieces == [(0, 200), (200, 400), (400, 500)]
    assert [spec_of(model, "bfloat16").dtype for model in MODELS] == ["bfloat16"] * len(MODELS)
    with pytest.raises(ValueError, match="--models huge: not one of tiny"):
        spec_of("huge", "float32")


def test_the_gpu_benchmark_runs_on_a_small_model() -> None:
    """On a CPU: that it runs, and against what; no figure of it says anything of a GPU."""
    found, limits = gpu.measure(SPEC, "cpu", prompt=32, context=20, batches=(1, 2), copied_bytes=1 << 20)
    assert [each.step.split(",")[0] for each in found] == [
        "decode of 1 behind 20",
        "decode of 2 behind 20",
        "prefill of 32",
        "decode of 2 behind 20",
    ]
    moved = SPEC.num_params() * 4 + SPEC.kv_bytes_per_token() * 21
    assert found[0].limit_s == pytest.approx(moved / limits.bytes_per_s)
    assert found[2].limit_s == pytest.approx(SPEC.flops(32, 32) / limits.flops_per_s)
    assert found[3].ratio == found[3].seconds / found[1].seconds
