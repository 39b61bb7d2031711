"""The predicted ledger: every stage of a request's way, in both arms, before the first request is sent.

Closed form: the calibrated step and link models, what messages take, a decode batch from Little's law, and queueing
waits for the pools. What it leaves out: preemption, prompts that share a step, and variety inside a length class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from xpyd.economics.batch import DecodeBatch, decode_batch
from xpyd.economics.cost import ComputeModel, LinkModel, effective_transfer_s
from xpyd.economics.delays import Delays
from xpyd.economics.ledger import ArmTimes, length_class
from xpyd.economics.queueing import block_wait_s
from xpyd.economics.scenario import Calibration, RequestClass, Scenario

Prediction = dict[str, tuple[ArmTimes, ArmTimes]]  # length class -> colocated, disaggregated
BISECTIONS = 60


def predict(calibration: Calibration, scenario: Scenario) -> Prediction:
    """Mean stage times of each length class in both arms, (colocated, disaggregated), shortest class first."""
    compute, link, delays = calibration.compute.model, calibration.link.model, calibration.delays
    colocated = _at_load(scenario, lambda rate: _colocated(compute, delays, scenario, rate))
    disaggregated = _at_load(scenario, lambda rate: _disaggregated(compute, link, delays, scenario, rate))
    together: dict[str, list[int]] = {}
    for index, cls in sorted(enumerate(scenario.classes), key=lambda pair: pair[1].input_len):
        together.setdefault(length_class(round(cls.input_len)), []).append(index)
    return {
        name: (_merge(scenario, colocated, members), _merge(scenario, disaggregated, members))
        for name, members in together.items()
    }


def to_json(prediction: Prediction) -> dict[str, dict[str, dict[str, float]]]:
    """Plain dicts: length class -> arm -> the fields of ``ArmTimes``."""
    return {
        name: {"colocated": asdict(colocated), "disaggregated": asdict(disaggregated)}
        for name, (colocated, disaggregated) in prediction.items()
    }


def _colocated(compute: ComputeModel, delays: Delays, scenario: Scenario, rate_rps: float) -> list[ArmTimes]:
    """All N ranks do both: prompts wait for prompts, and each prompt's compute stretches the decodes beside it."""
    num_ranks = scenario.num_colocated
    batch = colocated_batch(compute, scenario, rate_rps)
    prefill = [prefill_s(compute, scenario, cls, batch.others_s) for cls in scenario.classes]
    queue_s = delays.submit_s + _wait_s(scenario, rate_rps, prefill, num_ranks) + batch.residual_step_s
    queue_s += _seat_wait_s(scenario, rate_rps, batch, num_ranks)
    return [
        ArmTimes(queue_s, own_s, 0.0, 0.0, cls.num_gaps * batch.gap_s(cls))
        for cls, own_s in zip(scenario.classes, prefill, strict=True)
    ]


def _disaggregated(
    compute: ComputeModel, link: LinkModel, delays: Delays, scenario: Scenario, rate_rps: float
) -> list[ArmTimes]:
    """x ranks prefill, y ranks decode, and the KV of every request crosses a link in between."""
    prefill = [prefill_s(compute, scenario, cls, 0.0) for cls in scenario.classes]
    queue_s = delays.submit_s + _wait_s(scenario, rate_rps, prefill, scenario.num_prefill)
    batch = split_batch(compute, scenario, rate_rps)
    # A decode rank takes an offer only when it has a seat: waiting for one delays the transfer's end.
    seat_wait_s = _seat_wait_s(scenario, rate_rps, batch, scenario.num_decode)
    exposed = _exposed_s(compute, link, scenario, rate_rps)
    times = []
    for cls, own_s, exposed_s in zip(scenario.classes, prefill, exposed, strict=True):
        decode_s = cls.num_gaps * batch.gap_s(cls)
        if cls.output_len <= 1:  # never moves
            times.append(ArmTimes(queue_s, own_s, 0.0, 0.0, decode_s))
            continue
        exposed_s += delays.leave_s + seat_wait_s
        times.append(ArmTimes(queue_s, own_s, exposed_s, batch.residual_step_s + delays.admit_s, decode_s))
    return times


def colocated_batch(compute: ComputeModel, scenario: Scenario, rate_rps: float) -> DecodeBatch:
    """The decodes of a rank that prefills too."""
    num_ranks = scenario.num_colocated
    alone = [prefill_s(compute, scenario, cls, 0.0) for cls in scenario.classes]
    mean_s = scenario.mean(alone)
    stolen = scenario.mean([stolen_s(compute, scenario, cls) for cls in scenario.classes])
    wait_s = _wait_s(scenario, rate_rps, alone, num_ranks)
    return decode_batch(compute, scenario, rate_rps, num_ranks, mean_s / num_ranks, stolen, wait_s, mean_s)


def split_batch(compute: ComputeModel, scenario: Scenario, rate_rps: float) -> DecodeBatch:
    """The decodes of a rank that does nothing else."""
    mean_s = scenario.mean([prefill_s(compute, scenario, cls, 0.0) for cls in scenario.classes])
    return decode_batch(compute, scenario, rate_rps, scenario.num_decode, mean_s / scenario.num_prefill, stolen_s=0.0)


def stolen_s(compute: ComputeModel, scenario: Scenario, cls: RequestClass) -> float:
    """Seconds that one prompt takes from the decodes of its rank. Chunks share each step's base with them."""
    added_s = compute.chunk_s(cls.input_len)
    return added_s if scenario.policy == "chunked" else compute.step_s(cls.input_len)


def prefill_s(compute: ComputeModel, scenario: Scenario, cls: RequestClass, beside_s: float) -> float:
    """PREFILL_BEGIN to PREFILL_END; ``beside_s`` is what decodes add to each chunk's step (none run beside a whole)."""
    alone_s = compute.prefill_s(round(cls.input_len), scenario.chunk_tokens)
    return alone_s + num_mixed_steps(scenario, cls) * beside_s


def num_mixed_steps(scenario: Scenario, cls: RequestClass) -> int:
    """The steps of a prompt that decodes run beside: its chunks, or none where prompts run whole."""
    return 0 if scenario.chunk_tokens is None else -(-round(cls.input_len) // scenario.chunk_tokens)


def _exposed_s(compute: ComputeModel, link: LinkModel, scenario: Scenario, rate_rps: float) -> list[float]:
    """PREFILL_END to TRANSFER_END. Transfers that meet on a link stretch each other as in a queue for it."""
    wire = [
        link.wire_s(scenario.transfer_bytes(cls.input_len), scenario.num_descriptors(cls.input_len))
        for cls in scenario.classes
    ]
    num_links = min(scenario.num_prefill, scenario.num_decode)
    stretch = 1 + _wait_s(scenario, rate_rps, wire, num_links) / scenario.mean(wire)
    return [
        effective_transfer_s(link.alpha_s, wire_s * stretch, *overlap(compute, scenario, cls))
        for cls, wire_s in zip(scenario.classes, wire, strict=True)
    ]


def overlap(compute: ComputeModel, scenario: Scenario, cls: RequestClass) -> tuple[int, float]:
    """In how many parts the KV leaves, and the seconds in which they become final one by one."""
    if scenario.mode == "layerwise":
        return scenario.spec.num_layers, _last_step_s(compute, scenario, cls)
    if scenario.mode == "chunkwise" and scenario.chunk_tokens is not None:
        return num_mixed_steps(scenario, cls), prefill_s(compute, scenario, cls, 0.0)
    return 1, 0.0


def _last_step_s(compute: ComputeModel, scenario: Scenario, cls: RequestClass) -> float:
    """The step that completes a prompt: layers leave one by one while it runs, and hide behind it."""
    chunk = scenario.chunk_tokens or round(cls.input_len)
    last = (round(cls.input_len) - 1) % chunk + 1
    return compute.step_s(last, round(cls.input_len) - last)


def _wait_s(scenario: Scenario, rate_rps: float, service: list[float], num_servers: int) -> float:
    """The mean wait for ``num_servers`` ranks or links that serve each class in ``service[i]`` seconds."""
    mean_s = scenario.mean(service)
    cv2 = max(0.0, scenario.mean([s * s for s in service]) / mean_s**2 - 1)
    return block_wait_s(scenario.num_requests, rate_rps, mean_s, num_servers, cv2, scenario.arrival_cv2)


def _seat_wait_s(scenario: Scenario, rate_rps: float, batch: DecodeBatch, num_ranks: int) -> float:
    """The mean wait for one of the seats in the decode batches; next to nothing unless they are full."""
    stay_s = scenario.mean([cls.num_gaps * batch.gap_s(cls) for cls in scenario.classes])
    seats = num_ranks * scenario.num_seats
    return block_wait_s(scenario.num_requests, rate_rps, stay_s, seats, 1.0, scenario.arrival_cv2)


def _at_load(scenario: Scenario, times_at: Callable[[float], list[ArmTimes]]) -> list[ArmTimes]:
    """The arm's times at the offered rate; in a closed loop at the rate that keeps ``concurrency`` requests under way.

    That rate solves Little's law, ``rate * e2e(rate) = concurrency``, by bisection: e2e only grows with the rate.
    """
    if scenario.rate_rps is not None:
        return times_at(scenario.rate_rps)
    assert scenario.concurrency is not None

    def under_way(rate_rps: float) -> float:
        times = times_at(rate_rps)
        return rate_rps * scenario.mean([t.e2e_s for t in times])

    low, high = 0.0, 1.0
    while under_way(high) < scenario.concurrency:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if under_way(middle) < scenario.concurrency else (low, middle)
    return times_at(high)


def _merge(scenario: Scenario, times: list[ArmTimes], members: list[int]) -> ArmTimes:
    """The mean over the classes that fall into one length bucket, by their shares."""
    total = sum(scenario.classes[i].share for i in members)
    lines: dict[str, Any] = dict.fromkeys(asdict(times[0]), 0.0)
    for i in members:
        for name, seconds in asdict(times[i]).items():
            lines[name] += scenario.classes[i].share / total * seconds
    return ArmTimes(**lines)
