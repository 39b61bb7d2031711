"""KV bytes per token of the field's models, hand-computed (science.md section 3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from xpyd.model.spec import ModelSpec

CONF = Path(__file__).parents[2] / "conf"
LLAMA8B = ModelSpec("8b", 32, 4096, 32, 8, 128, 14336, 128256, dtype="bfloat16")


def shape(name: str) -> ModelSpec:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = OmegaConf.to_container(compose(overrides=[f"+model={name}"]))
    assert isinstance(plain, dict)
    model = plain["model"]
    model.pop("rope_scaling", None)
    return ModelSpec(**model)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("llama3_8b", 131_072), ("llama3_70b", 327_680), ("qwen3_8b", 147_456), ("mistral_7b", 131_072)],
)
def test_kv_bytes_per_token(name: str, expected: int) -> None:
    assert shape(name).kv_bytes_per_token() == expected


def test_mla_counts_the_latent() -> None:
    mla = ModelSpec("v3", 61, 7168, 128, 128, 128, 18432, 129280, latent_dim=512, rope_dim=64, dtype="bfloat16")
    assert mla.kv_bytes_per_token() == 70_272


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
