"""Steps of a run against steps alone: the fit and the scatter on planted steps, and the points that step rows make."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from xpyd.calibration import alike
from xpyd.economics.cost import ComputeModel, ComputePoint
from xpyd.economics.delays import DelayPoint, Delays, fit_delays
from xpyd.economics.engine import EngineModel, Scatter, fit_engine, scatter, step_s
from xpyd.worker.played import (
    BLOCKS_PER_ROUND,
    calibration_blocks,
    delay_points,
    is_lightest,
    lone_block,
    played_points,
)

ALONE = ComputeModel(3e-3, 1e-4, 2e-7, 5e-5, 1e-7)
ENGINE = EngineModel(1.4, 0.9)


def planted() -> list[ComputePoint]:
    """Steps of a run: a tenth of them stalled to three times their length."""
    generator = np.random.default_rng(0)
    points = []
    for tokens, seqs in ((0, 1), (0, 3), (48, 0), (176, 0)):
        for number in range(40):
            context = int(generator.integers(50, 200)) * seqs
            point = ComputePoint(1.0, tokens, 0, seqs, context)
            slow = 3.0 if number % 10 == 0 else 0.9 + 0.2 * number / 40
            points.append(ComputePoint(step_s(ENGINE.of(ALONE), point) * slow, tokens, 0, seqs, context))
    return points


def test_a_known_engine_is_found_though_steps_stall() -> None:
    found = fit_engine(ALONE, planted())
    assert found.step_factor == pytest.approx(ENGINE.step_factor, rel=0.05)
    assert found.prompt_factor == pytest.approx(ENGINE.prompt_factor, rel=0.05)
    decodes = [point for point in planted() if not point.num_prefill_tokens]
    assert fit_engine(ALONE, decodes).prompt_factor == 1.0
    assert fit_engine(ALONE, []) == EngineModel()
    assert EngineModel().of(ALONE) == ALONE


def test_prompts_are_fitted_together_whichever_role_computes_them() -> None:
    """A slow minute under one of the two must not look like its role."""
    prompts = [point for point in planted() if point.num_prefill_tokens]
    decodes = [point for point in planted() if not point.num_prefill_tokens]
    slow = [replace(point, seconds=1.2 * point.seconds) for point in prompts]
    groups = alike({"colocated": prompts + decodes, "decode": decodes, "prefill": slow})
    assert list(groups) == ["colocated", "decode", "prefill"]
    assert groups["decode"] == decodes
    engine = fit_engine(ALONE, groups["prefill"])
    assert fit_engine(ALONE, groups["colocated"]) == engine
    assert engine.prompt_factor == pytest.approx(1.1 * ENGINE.prompt_factor, rel=0.05)
    assert engine.step_factor == pytest.approx(ENGINE.step_factor, rel=0.05)


def test_the_scatter_holds_the_stalls() -> None:
    slow = [replace(point, seconds=1.5 * point.seconds) for point in planted()]
    found = scatter(ENGINE.of(ALONE), [[planted(), slow]])  # that one block is slower than the other is no scatter
    for own in (found.prefill, found.decode):
        assert own[-1] == pytest.approx(3.0, rel=0.02)
        assert np.quantile(own, 0.85) < 1.2, "a tenth stalls, no more"
        assert np.median(own) == pytest.approx(1.0, abs=0.05)
    prompts_alone = [point for point in planted() if point.num_prefill_tokens]
    assert scatter(ENGINE.of(ALONE), [[prompts_alone]]).decode == (1.0,)
    assert isinstance(found, Scatter)


def test_a_stall_seen_once_in_a_thousand_steps_counts_as_that() -> None:
    model = ENGINE.of(ALONE)
    usual = [ComputePoint(0.0, 0, 0, 4, 400)] * 1000
    taken = [replace(point, seconds=step_s(model, point) * (51.0 if not n else 1.0)) for n, point in enumerate(usual)]
    found = scatter(model, [[taken]]).decode
    assert len(found) < len(taken)
    assert np.mean(found) == pytest.approx(1.05)
    assert sorted(found) == list(found)
    usual = [replace(point, seconds=step_s(model, point)) for point in usual[:7]]
    assert set(scatter(model, [[taken], [usual], [usual]]).decode) == {1.0}, "one of three calibrations saw it"


def step(block: int, rank: int, begin: float, end: float, tokens: int, prompts: int, seqs: int) -> dict[str, Any]:
    """A step row of ``begin`` to ``end`` ms."""
    times = {"begin_ns": round(begin * 1e6), "end_ns": round(end * 1e6)}
    counts = {"num_prefill_tokens": tokens, "num_prefill_seqs": prompts, "num_decode_seqs": seqs}
    role = "colocated" if rank < 3 else "decode"
    return {"block": block, "rank": rank, "role": role, **times, **counts, "num_context_tokens": 100 * seqs}


def test_a_step_lasts_until_the_next_one_begins() -> None:
    """Turns of 0.25, 0.25 and, over an idle while, 50 ms: their median counts; other ranks and blocks do not."""
    rows = [
        step(0, 1, 0, 40, 112, 1, 0),
        step(0, 1, 41, 45, 0, 0, 1),
        step(0, 1, 45.25, 49.25, 0, 0, 1),
        step(0, 1, 49.5, 53.5, 0, 0, 1),
        step(0, 1, 103.5, 107.5, 0, 0, 1),
        step(0, 2, 0, 90, 96, 2, 0),
        step(0, 2, 90, 120, 64, 1, 3),
        step(1, 3, 0, 5, 0, 0, 1),
        step(1, 3, 6, 11, 0, 0, 1),
        step(BLOCKS_PER_ROUND, 1, 0, 5, 0, 0, 2),
    ]
    first, second, *others = played_points(reversed(rows), BLOCKS_PER_ROUND + 1)
    assert second["decode"] == [ComputePoint(pytest.approx(0.006), 0, 0, 1, 100)] * 2, "each role has its own turns"
    assert first == {
        "colocated": [
            ComputePoint(pytest.approx(0.04025), 112, 0, 0, 0),
            *[ComputePoint(pytest.approx(0.00425), 0, 0, 1, 100)] * 4,
        ]
    }, "two prompts in a step, and 64 tokens of one, are left out"
    assert others == [{}, {}, {"colocated": [ComputePoint(pytest.approx(0.00525), 0, 0, 2, 200)]}]


def stamps(block: int, **ms: float) -> list[dict[str, Any]]:
    """Stage rows of a request of ``block``, at so many ms."""
    return [{"block": block, "request_id": 7, "stage": stage, "t_ns": round(at * 1e6)} for stage, at in ms.items()]


def token(block: int, emitted: float, had: float) -> dict[str, Any]:
    return {"block": block, "emitted_ns": round(emitted * 1e6), "t_ns": round(had * 1e6)}


def test_waits_are_read_off_requests_that_had_the_workers_for_themselves() -> None:
    whole = {"arrived": 1, "routed": 1.2, "prefill_begin": 1.5, "prefill_end": 9}
    rows = stamps(0, **whole)
    rows += stamps(1, **whole, transfer_begin=9.4, transfer_end=20, decode_admit=20.25)
    rows += stamps(BLOCKS_PER_ROUND + 1, **whole, transfer_begin=5, transfer_end=8, decode_admit=9.75)
    found = delay_points(rows, [token(0, 9, 9.5), token(BLOCKS_PER_ROUND, 3, 3.25)])
    assert [(point.delay, round(point.seconds * 1e3, 6)) for point in found] == [
        ("tell", 0.5),
        ("tell", 0.25),
        ("submit", 0.5),
        ("submit", 0.5),
        ("leave", 0.4),
        ("admit", 0.25),
        ("submit", 0.5),
        ("leave", 0.0),  # by layers, before the prompt's end
        ("admit", 0.75),  # which its first token waits for
    ]
    assert [number for number in range(8) if is_lightest(number)] == [0, 1, 4, 5]
    assert [calibration_blocks(1, 4096)[number].concurrency for number in (0, 1)] == [1, 1]
    assert fit_delays(found) == Delays(
        submit_s=pytest.approx(5e-4),
        leave_s=pytest.approx(2e-4),
        admit_s=pytest.approx(5e-4),
        tell_s=pytest.approx(3.75e-4),
    )
    assert fit_delays([]) == Delays()
    assert fit_delays([DelayPoint("tell", -1e-5)]).tell_s == 0, "clocks are right to some microseconds"


def test_both_arms_are_played_lightly_and_less_so_in_every_round() -> None:
    blocks = calibration_blocks(1, 4096)
    assert [(block.arm, block.concurrency) for block in blocks] == [
        ("colocated", 1),
        ("disaggregated", 1),
        ("colocated", 3),
        ("disaggregated", 3),
    ]
    assert [block.number for block in blocks] == [4, 5, 6, 7]
    assert {block.pair for block in blocks} == {1}
    assert {request.input_len for request in blocks[0].requests} == {48, 112, 176}
    assert {request.input_len for request in calibration_blocks(0, 144)[0].requests} == {48, 112}
    assert calibration_blocks(0, 79) == []


def test_messages_are_timed_by_requests_that_fit() -> None:
    block = lone_block(4096)
    assert block is not None
    assert (block.number, block.arm, block.concurrency) == (-1, "disaggregated", 1)
    assert {(request.input_len, request.output_len) for request in block.requests} == {(176, 4)}
    small = lone_block(120)
    assert small is not None
    assert {request.input_len for request in small.requests} == {112}
    assert lone_block(50) is None
