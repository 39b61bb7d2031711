"""The prediction: exact where nothing queues, sane at its edges, and near a simulation of the real schedulers."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, replace
from math import isfinite
from typing import Any

import numpy as np
import pytest

from tests.unit.simulated import COMPUTE, LINK, SPEC, simulate
from tests.unit.test_simulate import SETUP, play
from xpyd.economics.cost import (
    ComputeFit,
    ComputeModel,
    ComputePoint,
    LinkFit,
    LinkModel,
    LinkPoint,
    effective_transfer_s,
)
from xpyd.economics.delays import Delays
from xpyd.economics.ledger import make_ledger
from xpyd.economics.nnls import Score
from xpyd.economics.predict import predict, to_json
from xpyd.economics.scenario import Calibration, RequestClass, Scenario, calibration_from, classes_of, fit_calibration
from xpyd.placement import PlacementConfig
from xpyd.records import StageRow, TokenRow
from xpyd.request import Request, Stage
from xpyd.router import RouterConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.units import NS_PER_S, s_to_ns

UNSCORED = Score(0, 0.0, 0.0, 0.0)
CHAT, DOCUMENT = RequestClass(0.8, 80, 36), RequestClass(0.2, 640, 24)


def calibration(link: LinkModel = LINK) -> Calibration:
    return Calibration(ComputeFit(COMPUTE, UNSCORED), LinkFit(link, UNSCORED))


BASE = Scenario(
    spec=SPEC,
    classes=(CHAT, DOCUMENT),
    num_requests=24,
    num_prefill=1,
    num_decode=1,
    policy="chunked",
    max_num_seqs=32,
    max_num_batched_tokens=256,
    block_size=16,
    num_kv_blocks=512,
    mode="layerwise",
    max_piece_bytes=1 << 20,
    rate_rps=10.0,
)


@pytest.mark.parametrize("mode", ["whole", "layerwise"])
@pytest.mark.parametrize("policy", ["chunked", "prefill_first"])
def test_an_idle_cluster_takes_the_bare_steps(mode: Any, policy: Any) -> None:
    idle = replace(BASE, rate_rps=1e-9, mode=mode, policy=policy)
    colocated, disaggregated = predict(calibration(), idle)["513-2048"]
    prefill_s = COMPUTE.prefill_s(640, chunk_tokens=256 if policy == "chunked" else None)
    decode_s = 23 * COMPUTE.step_s(num_decode_seqs=1, num_context_tokens=640 + 12)
    wire_s = LINK.wire_s(640 * SPEC.kv_bytes_per_token(), num_descriptors=2 * SPEC.num_layers)  # 1.25 MiB a layer
    last_step_s = COMPUTE.step_s(128, 512) if policy == "chunked" else prefill_s
    exposed_s = effective_transfer_s(LINK.alpha_s, wire_s, SPEC.num_layers if mode == "layerwise" else 1, last_step_s)
    assert astuple(colocated) == pytest.approx((0, prefill_s, 0, 0, decode_s), abs=1e-7)
    assert astuple(disaggregated) == pytest.approx((0, prefill_s, exposed_s, 0, decode_s), abs=1e-7)


def test_messages_delay_what_they_come_before() -> None:
    delays = Delays(submit_s=1e-3, leave_s=2e-3, admit_s=4e-3, tell_s=8e-3)
    scenario = replace(BASE, classes=(replace(CHAT, output_len=1), DOCUMENT), mode="whole")
    plain, later = (predict(each, scenario) for each in (calibration(), replace(calibration(), delays=delays)))
    for name, added in (("1-128", (1e-3, 0, 0, 0, 0)), ("513-2048", (1e-3, 0, 2e-3, 4e-3, 0))):
        for before, found, waits in zip(plain[name], later[name], ((1e-3, 0, 0, 0, 0), added), strict=True):
            assert np.subtract(astuple(found), astuple(before)) == pytest.approx(waits, abs=1e-12)
    assert calibration_from(asdict(replace(calibration(), delays=delays))).delays == delays
    assert calibration_from({key: asdict(calibration())[key] for key in ("compute", "link")}).delays == Delays()


@pytest.mark.parametrize("policy", ["chunked", "prefill_first"])
@pytest.mark.parametrize("rate_rps", [2.0, 10.0, 16.0])
def test_near_a_simulation_of_the_real_schedulers(policy: Any, rate_rps: float) -> None:
    simulated, requests = simulate(policy, rate_rps, BASE.num_requests, num_blocks=30)
    scenario = replace(BASE, classes=classes_of(requests), policy=policy, rate_rps=rate_rps, router="round_robin")
    for name, (colocated, disaggregated) in predict(calibration(), scenario).items():
        for found, expected in (
            (colocated, simulated[name, "colocated"]),
            (disaggregated, simulated[name, "disaggregated"]),
        ):
            assert found.decode_s == pytest.approx(expected.decode_s, rel=0.2)
            assert found.prefill_s == pytest.approx(expected.prefill_s, rel=0.2, abs=6e-3)  # prompts share steps
            assert found.e2e_s == pytest.approx(expected.e2e_s, rel=0.2)


@pytest.mark.parametrize(("input_len", "rate_rps"), [(256, 6.0), (1024, 2.0), (1024, 4.0), (1024, 6.0)])
@pytest.mark.parametrize("router", ["least_outstanding", "round_robin"])
def test_near_the_simulator_where_prompts_queue(router: Any, input_len: int, rate_rps: float) -> None:
    """Two colocated ranks, from a load at which few prompts meet to one that they cannot keep up with."""
    chunky = ComputeModel(5e-3, 4e-4, 1e-7, 5e-5, 2e-7)
    scenario = replace(
        BASE, classes=(RequestClass(1.0, input_len, 24),), num_requests=16, rate_rps=rate_rps, router=router
    )
    calibrated = Calibration(ComputeFit(chunky, UNSCORED), LinkFit(LINK, UNSCORED))
    ((found, _),) = predict(calibrated, scenario).values()
    decode_s, e2e_s = simulated_colocated(chunky, scenario, num_blocks=20)
    assert found.decode_s == pytest.approx(decode_s, rel=0.45)
    assert found.e2e_s == pytest.approx(e2e_s, rel=0.25)


def simulated_colocated(compute: ComputeModel, scenario: Scenario, num_blocks: int) -> tuple[float, float]:
    """Seconds from the first token to the last, and from the arrival: means over blocks of ``xpyd.simulate``."""
    assert scenario.rate_rps is not None
    (cls,) = scenario.classes
    setup = replace(
        SETUP,
        placement=PlacementConfig(num_colocated=scenario.num_colocated),
        scheduler=SchedulerConfig("chunked", 32, 256, 16, 4096),
        router=RouterConfig(scenario.router),
        compute=compute,
    )
    decodes, all_s = [], []
    for seed in range(num_blocks):
        arrived = np.random.default_rng(seed).exponential(1 / scenario.rate_rps, scenario.num_requests).cumsum()
        requests = [Request(i, s_to_ns(at), int(cls.input_len), int(cls.output_len)) for i, at in enumerate(arrived)]
        for row in play(setup, requests)[0]:
            if isinstance(row, TokenRow) and row.index == cls.output_len - 1:
                all_s.append(row.emitted_ns / NS_PER_S - arrived[row.request_id])
            elif isinstance(row, StageRow) and row.stage == Stage.PREFILL_END:
                decodes.append(-(row.t_ns / NS_PER_S - arrived[row.request_id]))
    return float(np.mean(all_s) + np.mean(decodes)), float(np.mean(all_s))


def test_the_win_needs_load_and_the_bill_a_slow_link() -> None:
    idle = make_ledger(*predict(calibration(), replace(BASE, rate_rps=0.01))["1-128"])
    busy = make_ledger(
        *predict(calibration(), replace(BASE, num_decode=2, rate_rps=30.0, router="round_robin"))["1-128"]
    )
    assert abs(idle.win_s) < 1e-3 < busy.win_s
    slow = LinkModel(LINK.alpha_s, LINK.gamma_s, LINK.bytes_per_s / 100)
    dear = make_ledger(*predict(calibration(slow), replace(BASE, rate_rps=0.01))["513-2048"])
    assert dear.bill_s > 0.5 * 640 * SPEC.kv_bytes_per_token() / slow.bytes_per_s
    assert dear.ledger_s < 0


def test_layerwise_never_exposes_more_than_whole() -> None:
    whole = predict(calibration(), replace(BASE, mode="whole"))
    for name, (_, layerwise) in predict(calibration(), BASE).items():
        assert layerwise.exposed_transfer_s < whole[name][1].exposed_transfer_s


@pytest.mark.parametrize("policy", ["chunked", "prefill_first"])
@pytest.mark.parametrize("change", [{"rate_rps": 1e4}, {"max_num_seqs": 1}, {"num_kv_blocks": 45}, {"num_requests": 1}])
def test_every_stage_is_finite_and_not_negative(policy: Any, change: dict[str, Any]) -> None:
    for arms in predict(calibration(), replace(BASE, policy=policy, **change)).values():
        assert all(isfinite(seconds) and seconds >= 0 for times in arms for seconds in astuple(times))


def test_fewer_seats_make_requests_wait() -> None:
    crowded = replace(BASE, rate_rps=40.0)
    roomy, tight = (predict(calibration(), replace(crowded, max_num_seqs=n))["1-128"] for n in (32, 1))
    assert tight[0].queue_s > roomy[0].queue_s + 0.01
    assert tight[1].exposed_transfer_s > roomy[1].exposed_transfer_s + 0.01


def test_decodes_slow_the_chunks_beside_them_and_steps_delay_admission() -> None:
    busy = predict(calibration(), replace(BASE, rate_rps=20.0))["513-2048"]
    alone_s = COMPUTE.prefill_s(640, chunk_tokens=256)
    assert alone_s < busy[0].prefill_s < alone_s + 3 * COMPUTE.decode_s(8, 100)
    assert busy[1].prefill_s == pytest.approx(alone_s)
    assert 0 < busy[1].admission_s < COMPUTE.step_s(num_decode_seqs=8, num_context_tokens=8 * 200)


def test_whole_blocks_move_in_pieces_of_each_layer() -> None:
    block_bytes = 16 * SPEC.kv_bytes_per_token()
    assert [BASE.transfer_bytes(n) for n in (1, 16, 17)] == [block_bytes, block_bytes, 2 * block_bytes]
    assert BASE.num_descriptors(17) == SPEC.num_layers
    assert replace(BASE, max_piece_bytes=block_bytes // SPEC.num_layers).num_descriptors(17) == 2 * SPEC.num_layers


def test_a_small_pool_has_fewer_seats_than_its_limit() -> None:
    chat = replace(BASE, classes=(RequestClass(1.0, 80, 36),))  # 116 tokens: 8 blocks
    assert chat.num_seats == 32
    assert replace(chat, num_kv_blocks=40).num_seats == 5
    assert replace(chat, num_kv_blocks=7).num_seats == 1


def test_a_single_token_never_moves() -> None:
    one = replace(BASE, classes=(RequestClass(1.0, 64, 1),))
    colocated, disaggregated = predict(calibration(), one)["1-128"]
    assert colocated.decode_s == disaggregated.decode_s == 0
    assert disaggregated.exposed_transfer_s == disaggregated.admission_s == 0


def test_a_closed_loop_keeps_its_requests_under_way() -> None:
    closed = replace(BASE, rate_rps=None, concurrency=4, num_requests=1000, classes=(RequestClass(1.0, 80, 36),))
    colocated, _ = predict(calibration(), closed)["1-128"]
    alone, _ = predict(calibration(), replace(closed, concurrency=1))["1-128"]
    open_loop = replace(closed, concurrency=None, rate_rps=4 / colocated.e2e_s)  # as fast, and sometimes more at once
    assert alone.e2e_s < colocated.e2e_s < predict(calibration(), open_loop)["1-128"][0].e2e_s
    assert alone.decode_s == pytest.approx(35 * COMPUTE.step_s(num_decode_seqs=1, num_context_tokens=80 + 18))


def test_classes_of_one_bucket_are_merged_by_share() -> None:
    classes = (RequestClass(0.6, 40, 20), RequestClass(0.2, 120, 30), RequestClass(0.2, 600, 30))
    merged = predict(calibration(), replace(BASE, classes=classes, rate_rps=1e-9))
    assert list(merged) == ["1-128", "513-2048"]
    expected = 0.75 * COMPUTE.prefill_s(40) + 0.25 * COMPUTE.prefill_s(120)
    assert merged["1-128"][0].prefill_s == pytest.approx(expected)


def test_classes_of_planned_requests() -> None:
    lengths = [(100, 10), (600, 30), (28, 20), (128, 30)]
    requests = [Request(i, 0, input_len, output_len) for i, (input_len, output_len) in enumerate(lengths)]
    short, long = classes_of(requests)
    assert (short.share, short.input_len, short.output_len) == (0.75, pytest.approx(256 / 3), 20)
    assert (long.share, long.input_len, long.output_len) == (0.25, 600, 30)


def test_a_prediction_is_plain_json() -> None:
    plain = to_json(predict(calibration(), BASE))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert set(plain["1-128"]["disaggregated"]) == {
        "queue_s",
        "prefill_s",
        "exposed_transfer_s",
        "admission_s",
        "decode_s",
    }


def test_calibration_fits_both_models() -> None:
    points = [
        ComputePoint(COMPUTE.step_s(n, 0, b, b * c), n, 0, b, b * c)
        for n in (0, 64, 256)
        for b, c in ((1, 40), (4, 40), (8, 200))
    ]
    found = fit_calibration(points, [LinkPoint(n, d, LINK.transfer_s(n, d)) for n in (10**4, 10**7) for d in (1, 64)])
    assert found.compute.model.step_s(128, 0, 4, 400) == pytest.approx(COMPUTE.step_s(128, 0, 4, 400), rel=0.01)
    assert found.link.model.bytes_per_s == pytest.approx(LINK.bytes_per_s)


def test_scenarios_that_say_too_little_or_too_much() -> None:
    with pytest.raises(ValueError, match="open loop"):
        replace(BASE, rate_rps=None)
    with pytest.raises(ValueError, match="open loop"):
        replace(BASE, concurrency=4)
    with pytest.raises(ValueError, match="shares"):
        replace(BASE, classes=(CHAT,))
