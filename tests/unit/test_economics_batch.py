"""The decode batch against what is known in closed form, and against requests thrown at random."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from xpyd.economics.batch import DecodeBatch, decode_batch
from xpyd.economics.cost import ComputeModel
from xpyd.economics.scenario import RequestClass, Scenario
from xpyd.model.spec import ModelSpec

ONE = RequestClass(1.0, 64, 101)  # 100 gaps
FLAT = ComputeModel(0.010, 0, 0, 0, 0)  # every step takes 10 ms, whatever is in it: a stay of 1 s


def batch_of(
    num_requests: int, rate_rps: float, num_ranks: int = 1, compute: ComputeModel = FLAT, **changes: Any
) -> DecodeBatch:
    stolen_s = changes.pop("stolen_s", 0.0)
    settings = {"router": "round_robin", "policy": "prefill_first", "classes": (ONE,), "max_num_batched_tokens": 1000}
    scenario = Scenario(
        spec=ModelSpec("any", 2, 64, 2, 2, 32, 128, 256),
        num_requests=num_requests,
        num_prefill=1,
        num_decode=num_ranks,
        max_num_seqs=10**6,
        block_size=16,
        num_kv_blocks=10**9,
        mode="whole",
        max_piece_bytes=1 << 20,
        rate_rps=rate_rps,
        **{**settings, **changes},
    )
    return decode_batch(compute, scenario, rate_rps, num_ranks, prompts_s=0.0, stolen_s=stolen_s)


def test_a_long_block_obeys_littles_law() -> None:
    assert batch_of(10**6, 3.0).num_others == pytest.approx(3.0, rel=1e-4)
    assert batch_of(10**6, 3.0, num_ranks=2).num_others == pytest.approx(1.5, rel=1e-4)


def test_a_step_that_grows_with_its_batch() -> None:
    growing = ComputeModel(0.010, 0, 0, 0.002, 0)  # b = K (base + seq) / (1 - K seq), K = 3 * 100
    batch = batch_of(10**7, 3.0, compute=growing)
    assert batch.num_others == pytest.approx(300 * 0.012 / (1 - 300 * 0.002), rel=1e-3)
    assert batch.gap_s(ONE) == pytest.approx(0.012 + 0.002 * batch.num_others)


def test_prompts_stretch_the_gaps_by_their_share_of_the_time() -> None:
    batch = batch_of(10**7, 3.0, stolen_s=0.100)  # 3 prompts a second take 30 % of it
    assert batch.gap_s(ONE) == pytest.approx(0.010 / (1 - 0.3), rel=1e-3)


def test_no_gap_is_longer_than_a_step_with_a_full_chunk() -> None:
    chunky = ComputeModel(0.010, 1e-5, 0, 0, 0)
    batch = batch_of(10**4, 50.0, compute=chunky, stolen_s=0.5, policy="chunked", max_num_batched_tokens=200)
    assert batch.gap_s(ONE) == pytest.approx(0.010 + 200 * 1e-5)


@pytest.mark.parametrize("rate_rps", [5.0, 40.0])  # a block of 4 s and one of half a second; a stay is 1 s
def test_a_short_block_against_requests_thrown_at_random(rate_rps: float) -> None:
    generator = np.random.default_rng(5)
    arrivals = generator.uniform(0, 20 / rate_rps, size=(20_000, 2))
    shared = np.maximum(0, 1 - np.abs(arrivals[:, 0] - arrivals[:, 1])).mean()  # of one stay, by one other request
    assert batch_of(20, rate_rps).num_others == pytest.approx(19 * shared, rel=0.02)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_newcomers_of_one_length_go_to_the_emptiest_rank(num_ranks: int) -> None:
    generator = np.random.default_rng(6)
    others = generator.poisson(3.0, size=200_000)
    expected = np.maximum(0, (others + 1) / num_ranks - 1).mean()
    found = batch_of(10**6, 3.0, num_ranks, router="least_outstanding").num_others
    assert found == pytest.approx(expected, rel=0.02)


def test_unequal_lengths_meet_more_often_than_equal_ones() -> None:
    mixed = (RequestClass(0.8, 64, 101), RequestClass(0.2, 2048, 101))
    equal, chance = (
        batch_of(10**6, 3.0, 2, router=router).num_others for router in ("least_outstanding", "round_robin")
    )
    assert equal < batch_of(10**6, 3.0, 2, router="least_outstanding", classes=mixed).num_others < chance
