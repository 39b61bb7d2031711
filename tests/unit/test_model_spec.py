"""KV bytes per token and parameters of the field's models, hand-computed (science.md section 3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from xpyd.model.shapes import ExpertsShape, LatentShape
from xpyd.model.spec import ModelSpec

CONF = Path(__file__).parents[2] / "conf"
LLAMA8B = ModelSpec("8b", 32, 4096, 32, 8, 128, 14336, 128256, dtype="bfloat16")


def shape(name: str) -> ModelSpec:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose(overrides=[f"+model={name}"]))
    assert isinstance(plain, dict)
    return TypeAdapter(ModelSpec).validate_python(plain["model"])


# Layers, KV heads and head size as published; times two planes (K and V) and two bytes, by hand.
KV_BYTES = {
    "llama3_8b": 131_072,  # 2 * 32 * 8 * 128 * 2
    "llama3_70b": 327_680,  # 2 * 80 * 8 * 128 * 2
    "mistral_7b": 131_072,  # 2 * 32 * 8 * 128 * 2
    "mixtral_8x7b": 131_072,  # the same: experts cache nothing
    "qwen3_0_6b": 114_688,  # 2 * 28 * 8 * 128 * 2
    "qwen3_8b": 147_456,  # 2 * 36 * 8 * 128 * 2
    "qwen3_32b": 262_144,  # 2 * 64 * 8 * 128 * 2
    "qwen3_30b_a3b": 98_304,  # 2 * 48 * 4 * 128 * 2
    "gpt_oss_20b": 49_152,  # 2 * 24 * 8 * 64 * 2
    "gpt_oss_120b": 73_728,  # 2 * 36 * 8 * 64 * 2
    "deepseek_v3": 70_272,  # 61 * (512 + 64) * 2: one plane
    "deepseek_v2_lite": 31_104,  # 27 * (512 + 64) * 2
    "tiny": 6_144,  # 2 * 6 * 4 * 32 * 4: float32
    "tiny_moe": 6_144,
    "tiny_mla": 1_920,  # 6 * (64 + 16) * 4
}


@pytest.mark.parametrize(("name", "expected"), KV_BYTES.items())
def test_kv_bytes_per_token(name: str, expected: int) -> None:
    assert shape(name).kv_bytes_per_token() == expected


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [  # billions, as their makers publish them
        ("mixtral_8x7b", 46.7, 12.9),
        ("qwen3_0_6b", 0.596, 0.596),  # of them 0.44 without the embedding, which is the head too
        ("qwen3_32b", 32.8, 32.8),
        ("qwen3_30b_a3b", 30.5, 3.35),
        ("deepseek_v3", 671.0, 37.6),
        ("deepseek_v2_lite", 15.7, 2.66),
        ("gpt_oss_20b", 20.9, 3.61 + 0.58),  # published without the embedding
        ("gpt_oss_120b", 116.8, 5.13 + 0.58),
    ],
)
def test_parameters_in_all_and_per_token(name: str, total: float, active: float) -> None:
    spec = shape(name)
    assert spec.num_params() / 1e9 == pytest.approx(total, abs=0.051)
    assert spec.num_active_params() / 1e9 == pytest.approx(active, abs=0.051)


def test_a_latent_block_has_one_plane() -> None:
    spec = shape("deepseek_v3")
    assert (spec.kv_planes, spec.kv_head_dim, spec.rope_dim) == (1, 576, 64)
    assert spec.block_bytes(16) == 16 * 576 * 2


def test_a_step_reads_the_experts_that_it_hits() -> None:
    spec = shape("mixtral_8x7b")
    expert_bytes = 32 * 3 * 4096 * 14336 * 2
    rest = spec.num_params() * 2 - 8 * expert_bytes
    assert spec.step_weight_bytes(1) == pytest.approx(rest + 2 * expert_bytes)
    assert spec.step_weight_bytes(2) == pytest.approx(rest + 3.5 * expert_bytes)  # 8 * (1 - 0.75^2)
    assert spec.step_weight_bytes(4096) == pytest.approx(spec.num_params() * 2)
    assert LLAMA8B.step_weight_bytes(1) == LLAMA8B.num_params() * 2


def test_a_window_bounds_pairs_and_reads() -> None:
    every = replace(LLAMA8B, sliding_window=4)
    per_pair = 4 * 32 * 32 * 128
    fewer = LLAMA8B.flops(3, 6) - every.flops(3, 6)  # tokens 4, 5 and 6 would see as many: 0, 1 and 2 too many
    assert fewer == pytest.approx(3 * per_pair)
    assert LLAMA8B.flops(3, 3) == every.flops(3, 3)
    assert every.kv_read_bytes(1, 100) == 4 * 131_072
    assert every.kv_read_bytes(3, 100) == 6 * 131_072  # the first of them sees two tokens that the last does not
    half = replace(every, sliding_window_every=2, shape_only="a mix of windows is")
    assert half.kv_read_bytes(1, 100) == (16 * 100 + 16 * 4) * 131_072 / 32
    assert LLAMA8B.flops(3, 6) - half.flops(3, 6) == pytest.approx(1.5 * per_pair)


def test_heads_are_replicated_beyond_the_kv_heads() -> None:
    assert LLAMA8B.kv_bytes_per_token(tensor_parallel=8) == 131_072
    assert LLAMA8B.kv_bytes_per_token(tensor_parallel=16) == 2 * 131_072


def test_a_block_is_its_tokens_in_one_layer() -> None:
    assert LLAMA8B.block_bytes(16) * LLAMA8B.num_layers == 16 * 131_072


def test_parameters_of_the_8b() -> None:
    assert LLAMA8B.num_params() == 8_030_261_248


def test_flops_grow_with_the_pairs() -> None:
    first, second = LLAMA8B.flops(1024, 1024), LLAMA8B.flops(1024, 2048)
    assert second - first == pytest.approx(4 * 32 * 32 * 128 * 1024 * 1024)


def test_uneven_head_groups_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_heads=32 is not a multiple of num_kv_heads=7"):
        replace(LLAMA8B, num_kv_heads=7)


LATENT = LatentShape(512, 128, 64, 128)
MLA = replace(LLAMA8B, num_kv_heads=1, head_dim=192, latent=LATENT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 8}, r"num_kv_heads=8 with latent attention.* set num_kv_heads=1"),
        ({"head_dim": 128}, r"head_dim=128 is not .*=128 \+ .*=64; set head_dim=192"),
        ({"qkv_bias": True}, r"qkv_bias=True: latent attention has neither"),
        (
            {"sliding_window_every": 2, "sliding_window": 8},
            r"sliding_window_every=2 .* cannot be run; set .*shape_only",
        ),
    ],
)
def test_latent_shapes_that_contradict_themselves_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(MLA, **change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_group": 3}, r"n_group=3 does not divide num_experts=8"),
        (
            {"n_group": 4, "topk_group": 1, "topk_method": "noaux_tc"},
            r"num_experts_per_tok=3 from topk_group=1 of n_group=4",
        ),
        ({"n_group": 2, "topk_group": 2}, r"n_group=2 with topk_method=greedy, which knows no groups"),
        ({"n_group": 8, "topk_group": 4, "topk_method": "noaux_tc"}, r"n_group=8: topk_method=noaux_tc rates a group"),
        ({"shared_expert_gate": True}, r"shared_expert_gate=true with shared_intermediate_size=0"),
    ],
)
def test_experts_that_contradict_themselves_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExpertsShape(8, 3, 16, **settings)
