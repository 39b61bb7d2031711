"""Arms on unequal resources are refused, whatever it is that differs; what may differ is let through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.test_config import composed
from xpyd.config.base import ConfigError
from xpyd.config.compare import Compare
from xpyd.config.load import load_config
from xpyd.model.sampling_config import SamplingConfig
from xpyd.parity import check_parity
from xpyd.placement import PlacementConfig


def compare(*overrides: str) -> Compare:
    config = load_config(composed("compare", *overrides))
    assert isinstance(config, Compare)
    return config


BASE = compare().arm("colocated")
SPLIT = compare().arm("disaggregated")


def test_placement_policy_limits_and_transfer_may_differ() -> None:
    tuned = replace(BASE, scheduler=replace(BASE.scheduler, policy="prefill_first", max_num_batched_tokens=64))
    check_parity({"colocated": BASE, "colocated_tuned": tuned, "disaggregated": SPLIT})


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        ({"placement": PlacementConfig(num_colocated=3)}, r"worker ranks is 2 in arm a, 3 in arm b"),
        ({"placement": PlacementConfig(num_colocated=2, pin_cores=False)}, r"placement\.pin_cores"),
        ({"model": compare("model=micro").model}, r"model is .*tiny.* in arm a, .*micro"),
        ({"scheduler": replace(BASE.scheduler, num_kv_blocks=640)}, r"num_kv_blocks is 512 in arm a, 640 in arm b"),
        ({"scheduler": replace(BASE.scheduler, block_size=32)}, r"scheduler\.block_size is 16 in arm a, 32"),
        ({"sampling": SamplingConfig(temperature=1.0)}, r"sampling is"),
    ],
)
def test_a_planted_mismatch_is_caught(planted: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_parity({"a": BASE, "b": replace(BASE, **planted)})


def test_arms_that_move_kv_use_one_codec() -> None:
    check_parity({"a": BASE, "b": replace(SPLIT, codec="int8")})
    with pytest.raises(ValueError, match=r"transfer\.codec is none in arm a, int8 in arm b"):
        check_parity({"a": SPLIT, "b": replace(SPLIT, codec="int8")})


def test_every_arm_of_a_comparison_has_its_own_resources() -> None:
    config = compare("placement=2p2d")
    assert {name: config.arm(name).placement.name for name in config.arms} == {
        "colocated": "4C",
        "disaggregated": "2P2D",
        "null": "4C",
    }


def test_the_hybrid_arm_is_held_to_the_same_resources() -> None:
    config = compare("hybrid=on", "placement=2p2d", "codec=int8", "transfer=staged")
    assert config.arms == ("colocated", "disaggregated", "hybrid", "null")
    hybrid = config.arm("hybrid")
    assert (hybrid.placement.num_workers, hybrid.codec) == (4, "int8"), "it moves KV as the split arm does"
    with pytest.raises(ValueError, match=r"num_kv_blocks is 512 in arm colocated, 640 in arm hybrid"):
        check_parity(
            {"colocated": BASE, "hybrid": replace(SPLIT, scheduler=replace(SPLIT.scheduler, num_kv_blocks=640))}
        )


@pytest.mark.parametrize(
    ("experiment", "options", "named"),
    [
        (
            "compare",
            ["hybrid=on", "placement.prefill_tp=2", "transfer.block_order=heads_first"],
            r"hybrid\.policy=cost with placement 1P\(tp2\)1D: .*widths of 1",
        ),
        ("compare", ["hybrid=on", "speculation=ngram"], r"hybrid\.policy=cost with speculation\.draft=ngram"),
        (
            "compare",
            ["hybrid=on", "placement=2p1d", "scheduler.prefix_cache=true", "scheduler.num_remote_blocks=8"],
            r"hybrid\.policy=cost with scheduler\.num_remote_blocks=8",
        ),
        (
            "compare",
            ["hybrid=on", "faults=retry"],
            r"faults\.policy=retry: without a rank the arms are no longer equal",
        ),
        ("compare", ["hybrid=on", "hybrid.margin=-1"], r"hybrid\.margin=-1"),
        ("speculation", ["+hybrid.policy=cost"], r"hybrid\.policy=cost with speculation\.draft=ngram"),
    ],
)
def test_what_the_hybrid_arm_cannot_do_is_refused(experiment: str, options: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load_config(composed(experiment, *options))
