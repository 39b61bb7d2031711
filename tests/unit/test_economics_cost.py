"""The golden figures of the field (science.md section 3), and fits that find the model that made the points."""

from __future__ import annotations

from dataclasses import astuple, replace
from math import inf

import numpy as np
import pytest

from xpyd import metrics
from xpyd.economics.cost import (
    ComputeModel,
    ComputePoint,
    LinkModel,
    LinkPoint,
    breakeven_bytes_per_s,
    effective_transfer_s,
    fit_compute,
    fit_link,
    kv_bytes,
    overlap_needed,
    replication,
    score_link,
)
from xpyd.economics.nnls import nnls
from xpyd.model.shapes import LatentShape
from xpyd.model.spec import ModelSpec
from xpyd.units import MIB, gbps_to_bytes_per_s

PREFILL_S = 0.205  # 2048 tokens, 8B class


def spec(num_layers: int = 32) -> ModelSpec:
    return ModelSpec("golden", num_layers, 4096, 32, 8, 128, 14336, 128256, dtype="bfloat16")


def latent() -> ModelSpec:
    """61 layers that cache 512 + 64 numbers each."""
    return replace(spec(61), num_kv_heads=1, head_dim=192, latent=LatentShape(512, 128, 64, 128))


def wire(rate_gbps: float) -> LinkModel:
    return LinkModel(alpha_s=0, gamma_s=0, bytes_per_s=gbps_to_bytes_per_s(rate_gbps))


def test_golden_kv_bytes() -> None:
    assert kv_bytes(spec(), 1) == 131_072
    assert kv_bytes(spec(), 2048) == 256 * MIB
    assert kv_bytes(spec(80), 1) == 327_680
    assert kv_bytes(spec(80), 1) / kv_bytes(spec(), 1) == 2.5
    assert kv_bytes(latent(), 1) == 70_272


def test_heads_shared_by_too_many_ranks_are_sent_twice() -> None:
    assert replication(spec(), tensor_parallel=8) == 1
    assert replication(spec(), tensor_parallel=16) == 2
    assert kv_bytes(spec(), 10, tensor_parallel=16) == 2 * kv_bytes(spec(), 10)
    assert replication(latent(), tensor_parallel=4) == 4


@pytest.mark.parametrize(("rate_gbps", "transfer_ms", "penalty"), [(200, 10.7, 0.052), (10, 214.7, 1.048)])
def test_golden_transfers(rate_gbps: float, transfer_ms: float, penalty: float) -> None:
    seconds = wire(rate_gbps).transfer_s(kv_bytes(spec(), 2048))
    assert seconds * 1e3 == pytest.approx(transfer_ms, abs=0.05)
    assert metrics.penalty_ratio(seconds, PREFILL_S) == pytest.approx(penalty, abs=0.0005)


def test_golden_overlap() -> None:
    seconds = wire(25).transfer_s(kv_bytes(spec(), 2048))
    assert seconds * 1e3 == pytest.approx(85.9, abs=0.05)
    assert overlap_needed(seconds, PREFILL_S, 0.06) == pytest.approx(0.857, abs=0.0005)
    assert metrics.penalty_ratio((1 - 0.857) * seconds, PREFILL_S) < 0.06
    assert metrics.penalty_ratio((1 - 0.85) * seconds, PREFILL_S) > 0.06
    assert overlap_needed(0.001, PREFILL_S, 0.06) == 0


def test_golden_interference() -> None:
    model = ComputeModel(0.010, 0.025 / 256, 0, 0, 0)
    gap = model.step_s(num_prefill_tokens=256, num_decode_seqs=1)
    assert gap == pytest.approx(0.035)
    assert gap / model.step_s(num_decode_seqs=1) == pytest.approx(3.5)
    assert metrics.interference_s(gap, model.step_s(num_decode_seqs=1)) == pytest.approx(model.chunk_s(256))


def test_every_term_of_a_transfer() -> None:
    link = LinkModel(alpha_s=0.001, gamma_s=0.0001, bytes_per_s=1e9)
    assert link.transfer_s(1e6, num_descriptors=5) == pytest.approx(0.001 + 0.0005 + 0.001)
    assert link.transfer_s(1e6, 5, concurrency=3, replication=2) == pytest.approx(0.001 + 0.0005 + 0.006)


def test_layerwise_is_bounded_by_the_last_layer() -> None:
    assert effective_transfer_s(0.001, 0.040, num_layers=4, window_s=1.0) == pytest.approx(0.001 + 0.010)
    assert effective_transfer_s(0.001, 0.040, num_layers=4, window_s=0.020) == pytest.approx(0.001 + 0.040 - 0.015)
    assert effective_transfer_s(0.001, 0.040, num_layers=1, window_s=1.0) == pytest.approx(0.041)


@pytest.mark.parametrize(("wire_s", "window_s"), [(0.04, 1.0), (0.04, 0.02), (0.04, 0.04)])
def test_layerwise_equals_sending_layer_after_layer(wire_s: float, window_s: float) -> None:
    free_at = 0.0
    for layer in range(8):
        free_at = max(free_at, window_s * (layer + 1) / 8) + wire_s / 8
    assert effective_transfer_s(0.0, wire_s, 8, window_s) == pytest.approx(free_at - window_s)


@pytest.mark.parametrize("num_layers", [1, 4, 32])
@pytest.mark.parametrize("window_s", [0.0, 0.01, 0.5])
def test_breakeven_bandwidth_costs_exactly_the_win(num_layers: int, window_s: float) -> None:
    bytes_per_s = breakeven_bytes_per_s(0.050, 1e6, 0.002, 0.003, num_layers, window_s)
    wire_s = LinkModel(0.002, 0.003, bytes_per_s).wire_s(1e6, num_descriptors=1)
    assert effective_transfer_s(0.002, wire_s, num_layers, window_s) == pytest.approx(0.050)


def test_no_bandwidth_pays_where_nothing_is_won() -> None:
    assert breakeven_bytes_per_s(0.0, 1e6) == inf
    assert breakeven_bytes_per_s(0.001, 1e6, alpha_s=0.001, num_layers=4, window_s=1.0) == inf
    assert breakeven_bytes_per_s(0.001, 1e6, descriptors_s=0.001) == inf


def link_points(link: LinkModel, noise: float = 0.0) -> list[LinkPoint]:
    generator = np.random.default_rng(1)
    shapes = [(2**k, d, c) for k in range(12, 26, 2) for d in (1, 8, 64) for c in (1, 2)]
    return [
        LinkPoint(n, d, link.transfer_s(n, d, c) * generator.lognormal(0, noise), concurrency=c) for n, d, c in shapes
    ]


def test_fit_finds_the_link_and_scores_points_it_never_saw() -> None:
    link = LinkModel(alpha_s=40e-6, gamma_s=2e-6, bytes_per_s=3e9)
    fit = fit_link(link_points(link))
    assert fit.model.alpha_s == pytest.approx(40e-6)
    assert fit.model.gamma_s == pytest.approx(2e-6)
    assert fit.model.bytes_per_s == pytest.approx(3e9)
    assert fit.score.r2 == pytest.approx(1)
    noisy = fit_link(link_points(link, noise=0.05))
    assert 0.02 < noisy.score.rms_error < 0.1
    assert noisy.model.alpha_s == pytest.approx(40e-6, rel=0.2)
    held_out = score_link(noisy.model, [LinkPoint(3_000_000, 3, 2 * link.transfer_s(3_000_000, 3))])
    assert held_out.rms_error == pytest.approx(0.5, abs=0.05)
    assert held_out.num_points == 1


def test_fit_finds_what_transfers_at_once_gain() -> None:
    """Two share 1 GB/s and move 1.2 between them, four 0.9: 10 MB each, in 1 + 2 * 10 / 1.2 and 1 + 4 * 10 / 0.9 ms."""
    link = LinkModel(alpha_s=1e-3, gamma_s=0, bytes_per_s=1e9, gain_2=1.2, gain_4=0.9)
    assert link.transfer_s(10**7, concurrency=2) == pytest.approx(1e-3 + 20e-3 / 1.2)
    assert link.transfer_s(10**7, concurrency=4) == pytest.approx(1e-3 + 40e-3 / 0.9)
    assert [link.gain(n) for n in (0.5, 1, 1.5, 2, 3, 4, 9)] == pytest.approx([1, 1, 1.1, 1.2, 1.05, 0.9, 0.9])
    sizes = [(10**6, 1), (10**7, 1), (10**7, 2), (10**7, 4)]
    fit = fit_link([LinkPoint(n, 1, link.transfer_s(n, concurrency=c), c) for n, c in sizes])
    assert astuple(fit.model) == pytest.approx(astuple(link))
    unknown = fit_link([LinkPoint(n, 1, link.transfer_s(n, concurrency=c), c) for n, c in sizes[:3]])
    assert (unknown.model.gain_2, unknown.model.gain_4) == (pytest.approx(1.2), pytest.approx(1.2))


def test_stalls_count_with_their_mean_and_not_less() -> None:
    link = LinkModel(alpha_s=1e-3, gamma_s=0, bytes_per_s=1e9)
    sizes = [10**4, 10**7] * 2000
    noise = np.random.default_rng(2).choice([0.5, 5.5], p=[0.9, 0.1], size=len(sizes))  # mean 1: a tenth stalls
    fit = fit_link([LinkPoint(n, 1, link.transfer_s(n) * x) for n, x in zip(sizes, noise, strict=True)])
    assert fit.model.transfer_s(10**4) == pytest.approx(link.transfer_s(10**4), rel=0.1)
    assert fit.model.transfer_s(10**7) == pytest.approx(link.transfer_s(10**7), rel=0.1)


def test_equal_descriptors_leave_gamma_at_zero() -> None:
    fit = fit_link([LinkPoint(n, 4, 1e-4 + n / 1e9) for n in (1000, 100_000, 10_000_000)])
    assert (fit.model.alpha_s, fit.model.gamma_s) == (pytest.approx(1e-4), 0)


def test_points_that_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="larger payloads"):
        fit_link([LinkPoint(n, 1, 1e-3) for n in (8, 16, 32)])
    with pytest.raises(ValueError, match="no points"):
        fit_link([])
    with pytest.raises(ValueError, match="positive time"):
        fit_link([LinkPoint(8, 1, 0.0)])


def test_fit_finds_the_step_model() -> None:
    true = ComputeModel(3e-3, 80e-6, 20e-9, 0.4e-3, 1e-6)
    points = [ComputePoint(true.step_s(n), n) for n in (16, 48, 96, 192, 384)]
    points += [ComputePoint(true.step_s(0, 0, b, b * c), 0, 0, b, b * c) for b in (1, 2, 4, 8) for c in (64, 256)]
    points += [ComputePoint(true.step_s(32, 64, 4, 400), 32, 64, 4, 400)]
    fit = fit_compute(points)
    assert fit.model.base_s == pytest.approx(true.base_s)
    assert fit.model.prefill_token_s == pytest.approx(true.prefill_token_s)
    assert fit.model.prefill_pair_s == pytest.approx(true.prefill_pair_s)
    assert fit.model.decode_seq_s == pytest.approx(true.decode_seq_s)
    assert fit.model.context_token_s == pytest.approx(true.context_token_s)


def test_fit_finds_what_a_chunk_hides_of_a_step() -> None:
    """Weights are read in 3 ms, and beside a chunk in 2 of them: else the fit would take it from tokens and pairs."""
    true = ComputeModel(3e-3, 80e-6, 20e-9, 0.4e-3, 1e-6, 2e-3)
    assert true.step_s(0, 0, 1, 100) == pytest.approx(3.5e-3)
    assert true.step_s(100) == pytest.approx(1e-3 + 8e-3 + 20e-9 * 5050)
    assert true.step_s(1, 0, 1, 100) == true.step_s(0, 0, 1, 100), "no more than the chunk takes"
    points = [ComputePoint(true.step_s(n), n) for n in (32, 48, 96, 192, 384)]
    points += [ComputePoint(true.step_s(0, 0, b, b * c), 0, 0, b, b * c) for b in (1, 2, 4, 8) for c in (64, 256)]
    points += [ComputePoint(true.step_s(32, 64, 4, 400), 32, 64, 4, 400)]
    assert astuple(fit_compute(points, hides=True).model) == pytest.approx(astuple(true))
    assert fit_compute(points).model.prefill_pair_s > 1.2 * true.prefill_pair_s
    prompts = [point for point in points if not point.num_decode_seqs]
    assert fit_compute(prompts, hides=True).model.hidden_s == 0, "steps of one kind have one base"


def test_chunks_of_a_prompt_cost_one_base_each() -> None:
    model = ComputeModel(0.001, 1e-5, 1e-8, 0, 0)
    steps = [model.step_s(4, 0), model.step_s(4, 4), model.step_s(2, 8)]
    assert model.prefill_s(10, chunk_tokens=4) == pytest.approx(sum(steps))
    assert model.prefill_s(10) == pytest.approx(model.step_s(10))
    hides = replace(model, hidden_s=3e-5)  # of a chunk of 4; one of 2 takes less
    assert hides.prefill_s(10, 4) == pytest.approx(sum([hides.step_s(4, 0), hides.step_s(4, 4), hides.step_s(2, 8)]))
    assert hides.prefill_s(10, 4) == pytest.approx(model.prefill_s(10, 4) - 2 * 3e-5 - model.chunk_s(2, 8))


def test_no_coefficient_below_zero_and_the_rest_refitted() -> None:
    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    target = np.array([3.0, 2.0, 1.0])  # unconstrained: 4 - x; clipping that slope would leave 4, the best is 2
    assert nnls(matrix, target) == pytest.approx([2.0, 0.0])


def test_nnls_meets_the_optimality_conditions() -> None:
    generator = np.random.default_rng(7)
    for _ in range(200):
        matrix = generator.normal(size=(12, 5)) * generator.lognormal(0, 4, size=5)
        target = generator.normal(size=12)
        x = nnls(matrix, target)
        slope = (matrix / np.linalg.norm(matrix, axis=0)).T @ (target - matrix @ x)
        assert (x >= 0).all()
        assert slope.max() < 1e-7
        assert np.abs(slope[x > 0]).max(initial=0) < 1e-7
