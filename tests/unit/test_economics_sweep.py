"""The closed-form sweep: golden figures, columns in step with each other, and all three modeled verdicts."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite
from typing import Any

import pytest

from xpyd.economics.roofline import Roofline, chunks
from xpyd.economics.sweep import EconomicsConfig, sweep
from xpyd.economics.verdict import Answer
from xpyd.model.shapes import ExpertsShape, LatentShape
from xpyd.model.spec import ModelSpec
from xpyd.records import EconomicsRow

LLAMA_8B = ModelSpec("llama3_8b", 32, 4096, 32, 8, 128, 14336, 128256, dtype="bfloat16")
CONFIG = EconomicsConfig(
    input_lens=(2048,),
    output_len=256,
    rates_gbps=(10.0, 200.0),
    mode="whole",
    alpha_s=0.0,
    gamma_s=0.0,
    max_piece_bytes=1 << 20,
    peak_flops=312e12,
    memory_gbytes_s=2000.0,
    compute_efficiency=0.48,
    memory_efficiency=0.8,
    decode_batch=8,
    chunk_tokens=512,
    max_penalty=0.06,
    negligible_win=0.01,
)


def only(**changes: Any) -> EconomicsRow:
    (row,) = sweep(LLAMA_8B, replace(CONFIG, **{"rates_gbps": (25.0,), **changes}))
    return row


def test_golden_bills_against_a_prefill_near_205_ms() -> None:
    slow, fast = sweep(LLAMA_8B, CONFIG)
    assert slow.prefill_s == pytest.approx(0.205, rel=0.05)
    assert slow.kv_bytes == 256 * 1024**2
    assert slow.transfer_s == pytest.approx(0.2147, abs=5e-5)
    assert fast.transfer_s == pytest.approx(0.0107, abs=5e-5)
    assert fast.penalty_ratio == pytest.approx(fast.transfer_s / fast.prefill_s)
    assert only().transfer_s == pytest.approx(0.0859, abs=5e-5)
    assert only().overlap_needed == pytest.approx(1 - 0.06 * slow.prefill_s / only().transfer_s)


def test_every_length_and_rate_has_a_row_and_every_column_a_number() -> None:
    rows = sweep(LLAMA_8B, replace(CONFIG, input_lens=(128, 32768), rates_gbps=(1.0, 10.0, 400.0)))
    assert [(r.input_len, r.rate_gbps) for r in rows] == [(n, g) for n in (128, 32768) for g in (1.0, 10.0, 400.0)]
    for row in rows:
        assert row.net_s == pytest.approx(row.win_s - row.exposed_transfer_s)
        assert all(isfinite(getattr(row, name)) for name in ("prefill_s", "transfer_s", "breakeven_output_tokens"))


@pytest.mark.parametrize("mode", ["whole", "layerwise"])
def test_at_the_breakeven_rate_nothing_is_won_or_lost(mode: str) -> None:
    costs = {"mode": mode, "alpha_s": 1e-4, "gamma_s": 1e-6}
    at_breakeven = only(**costs, rates_gbps=(only(**costs).breakeven_gbps,))
    assert at_breakeven.net_s == pytest.approx(0, abs=1e-9)
    assert only(**costs, rates_gbps=(0.9 * at_breakeven.rate_gbps,)).verdict == Answer.LINK_TOO_SLOW.value
    assert only(**costs, rates_gbps=(1.1 * at_breakeven.rate_gbps,)).verdict == Answer.SPLIT.value


def test_paid_for_after_the_breakeven_tokens() -> None:
    row = only()
    assert row.breakeven_output_tokens * row.win_s / 255 == pytest.approx(row.exposed_transfer_s)


def test_chunks_that_hide_behind_the_weights_leave_nothing_to_cure() -> None:
    idle = only(input_lens=(64,), decode_batch=1, chunk_tokens=64)
    assert idle.verdict == Answer.NO_INTERFERENCE.value
    assert only(input_lens=(64,), decode_batch=1, chunk_tokens=64, rates_gbps=(1e6,), negligible_win=0.0).verdict == (
        Answer.SPLIT.value
    )


def test_layerwise_hides_all_but_the_last_layer() -> None:
    row = only(mode="layerwise", rates_gbps=(200.0,))
    assert row.exposed_transfer_s == pytest.approx(row.transfer_s / 32)


def test_a_request_meets_no_more_chunks_than_it_has_gaps() -> None:
    crowded, fuller = (only(decode_batch=n, chunk_tokens=16, output_len=32) for n in (64, 128))
    assert fuller.win_s == pytest.approx(crowded.win_s, rel=0.2)
    assert only(decode_batch=16).win_s == pytest.approx(2 * only(decode_batch=8).win_s, rel=0.05)


def test_where_the_fixed_costs_exceed_the_win_no_rate_is_enough() -> None:
    assert only(alpha_s=10.0).breakeven_gbps == inf
    assert only(alpha_s=10.0).verdict == Answer.LINK_TOO_SLOW.value


def test_replicated_heads_are_sent() -> None:
    assert only(tensor_parallel=16).kv_bytes == 2 * only().kv_bytes


def test_roofline_by_hand() -> None:
    roof = Roofline(flops_per_s=1e12, memory_bytes_per_s=1e11)
    weights_s = LLAMA_8B.num_params() * 2 / 1e11
    assert roof.step_s(LLAMA_8B, 0, 0, 1, 100) == pytest.approx(weights_s + 100 * 131072 / 1e11)
    assert roof.step_s(LLAMA_8B, 1000) == pytest.approx(LLAMA_8B.flops(1000, 1000) / 1e12)
    assert roof.prefill_s(LLAMA_8B, 1000, 400) == pytest.approx(
        sum(LLAMA_8B.flops(size, start + size) / 1e12 for start, size in ((0, 400), (400, 400), (800, 200)))
    )


def test_chunks_cover_a_prompt_once() -> None:
    assert chunks(10, 4) == [(0, 4), (4, 4), (8, 2)]
    assert chunks(4, 4) == [(0, 4)]


def test_a_step_reads_the_experts_it_hits_and_the_latent() -> None:
    """By hand: 4 layers, 2 of 4 experts per token, hidden size 8; bytes decide, as arithmetic is next to free."""
    experts = ExpertsShape(4, 2, moe_intermediate_size=10)
    plain = ModelSpec("m", 4, 8, 2, 1, 6, 16, 32, latent=LatentShape(5, 4, 2, 3), experts=experts)
    roof = Roofline(flops_per_s=1e30, memory_bytes_per_s=1e9)
    attention = 8 * 2 * 6 + 8 * 7 + 5 * 2 * (4 + 3) + 2 * 3 * 8
    rest = 4 * (attention + 8 * 4 + 2 * 8 + 5) + 2 * 32 * 8 + 8  # routers, norms, embedding and head
    expert = 4 * 3 * 8 * 10
    one = roof.step_s(plain, num_decode_seqs=1, context_len=100)
    assert one * 1e9 == pytest.approx(4 * (rest + 2 * expert + 100 * 4 * 7))
    three = roof.step_s(plain, num_decode_seqs=3, context_len=100)
    assert three * 1e9 == pytest.approx(4 * (rest + 4 * (1 - 0.5**3) * expert + 3 * 100 * 4 * 7))
    chunk = roof.step_s(plain, num_prefill_tokens=20, num_cached_tokens=80)
    assert chunk * 1e9 == pytest.approx(4 * (rest + 4 * expert + 100 * 4 * 7), rel=1e-5)
