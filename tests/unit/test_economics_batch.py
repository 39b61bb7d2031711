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
    times = {name: changes.pop(name, 0.0) for name in ("stolen_s", "wait_s", "prefill_s")}
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
    return decode_batch(compute, scenario, rate_rps, num_ranks, prompts_s=0.0, **times)


def test_a_long_block_obeys_littles_law() -> None:
    assert batch_of(10**6, 3.0).num_others == pytest.approx(3.0, rel=1e-4)


def test_a_step_that_grows_with_its_batch() -> None:
    growing = ComputeModel(0.010, 0, 0, 0.002, 0)  # b = K (base + seq) / (1 - K seq), K = 3 * 100
    batch = batch_of(10**7, 3.0, compute=growing)
    assert batch.num_others == pytest.approx(300 * 0.012 / (1 - 300 * 0.002), rel=1e-3)
    assert batch.gap_s(ONE) == pytest.approx(0.012 + 0.002 * batch.num_others)


def test_prompts_stretch_the_gaps_by_their_share_of_the_time() -> None:
    batch = batch_of(10**7, 3.0, stolen_s=0.100)  # 3 prompts a second take 30 % of it
    assert batch.gap_s(ONE) == pytest.approx(0.010 / (1 - 0.3), rel=1e-3)


def test_prompts_fill_the_gaps_of_decodes_that_cost_nothing() -> None:
    """Of a calibration that saw prompts only: they take all of a stay, and what is left is no divisor."""
    free = ComputeModel(0, 1e-3, 0, 0, 0)
    batch = batch_of(10**7, 3.0, compute=free, stolen_s=0.100, prefill_s=0.100)
    stay_s = 0.100 * 3.0 * 0.100 / 2 / (1 - 3.0 * 0.100)  # stay = stolen * rate * (stay + prefill / 2)
    assert batch.gap_s(ONE) == pytest.approx(stay_s / 100, rel=1e-3)


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


@pytest.mark.parametrize("rate_rps", [3.0, 500.0])
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_in_turn_fewer_meet_than_by_chance(num_ranks: int, rate_rps: float) -> None:
    expected = (np.random.default_rng(7).poisson(rate_rps, size=200_000) // num_ranks).mean()
    assert batch_of(10**7, rate_rps, num_ranks).num_others == pytest.approx(expected, rel=0.02)


def test_prompts_that_come_while_ones_own_waits_or_is_computed_run_beside_its_decode() -> None:
    """A rank that prefills for 0.2 s: 1.2 s there, 3 a second come, and half of the last prompt is left at the end."""
    batch = batch_of(10**7, 3.0, stolen_s=0.0, prefill_s=0.2)
    assert batch.num_others == pytest.approx(3.0, rel=1e-3), "of 3.6 that are there"
    stolen = batch_of(10**7, 3.0, stolen_s=0.001, prefill_s=0.2)
    assert stolen.gap_s(ONE) == pytest.approx(0.010 + 3 * 1.1 * 0.001 / 100, rel=1e-4)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_newcomers_of_one_length_go_to_the_emptiest_rank(num_ranks: int) -> None:
    generator = np.random.default_rng(6)
    others = generator.poisson(3.0, size=200_000)
    expected = np.maximum(0, (others + 1) / num_ranks - 1).mean()
    found = batch_of(10**6, 3.0, num_ranks, router="least_outstanding").num_others
    assert found == pytest.approx(expected, rel=0.02)


def test_unequal_lengths_meet_more_often_than_equal_ones() -> None:
    mixed = (RequestClass(0.8, 64, 101), RequestClass(0.2, 2048, 101))
    equal, unequal = (batch_of(10**6, 3.0, 2, router="least_outstanding", classes=each) for each in ((ONE,), mixed))
    assert equal.num_others < unequal.num_others < 1.5, "which is what meets by chance"
