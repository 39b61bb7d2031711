"""The predicted ledger: every stage of a request's way, in both arms, before the first request is sent.

Closed form: the calibrated step and link models, a decode batch from Little's law, and queueing waits for the pools.
What it leaves out: preemption, prompts that share a step, variety inside a length class, and the end of a block, when
the batch runs dry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import exp
from typing import Any

from xpyd.economics.cost import ComputeModel, LinkModel, effective_transfer_s
from xpyd.economics.ledger import ArmTimes, length_class
from xpyd.economics.queueing import block_wait_s
from xpyd.economics.scenario import Calibration, RequestClass, Scenario

Prediction = dict[str, tuple[ArmTimes, ArmTimes]]  # length class -> colocated, disaggregated
BISECTIONS = 60


def predict(calibration: Calibration, scenario: Scenario) -> Prediction:
    """Mean stage times of each length class in both arms, (colocated, disaggregated), shortest class first."""
    compute, link = calibration.compute.model, calibration.link.model
    colocated = _at_load(scenario, lambda rate: _colocated(compute, scenario, rate))
    disaggregated = _at_load(scenario, lambda rate: _disaggregated(compute, link, scenario, rate))
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


@dataclass(frozen=True)
class _Batch:
    """The decodes of one rank: how many there are on average, and what the gaps of each are.

    ``step_s`` is a step as one of its sequences sees it, so with itself in it.
    """

    num_seqs: float
    step_s: float
    gap_s: Callable[[RequestClass], float]
    seq_s: float  # what one sequence adds to a step

    @property
    def busy(self) -> float:
        """Probability that a sequence decodes at a random moment, their number being Poisson."""
        return 1 - exp(-self.num_seqs)

    @property
    def residual_step_s(self) -> float:
        """Mean time that something new waits for the running step to end."""
        return self.busy * self.step_s / 2


def _colocated(compute: ComputeModel, scenario: Scenario, rate_rps: float) -> list[ArmTimes]:
    """All N ranks do both: prompts wait for prompts, and each prompt's compute stretches the decodes beside it."""
    num_ranks = scenario.num_colocated
    stolen = [_stolen_s(compute, scenario, cls) for cls in scenario.classes]
    batch = _decode_batch(compute, scenario, rate_rps, num_ranks, stolen)
    prefill = [_prefill_s(compute, scenario, cls, batch.num_seqs * batch.seq_s) for cls in scenario.classes]
    queue_s = _wait_s(scenario, rate_rps, prefill, num_ranks) + batch.residual_step_s
    queue_s += _seat_wait_s(scenario, rate_rps, batch, num_ranks)
    return [
        ArmTimes(queue_s, own_s, 0.0, 0.0, _num_gaps(cls) * batch.gap_s(cls))
        for cls, own_s in zip(scenario.classes, prefill, strict=True)
    ]


def _disaggregated(compute: ComputeModel, link: LinkModel, scenario: Scenario, rate_rps: float) -> list[ArmTimes]:
    """x ranks prefill, y ranks decode, and the KV of every request crosses a link in between."""
    prefill = [_prefill_s(compute, scenario, cls, 0.0) for cls in scenario.classes]
    queue_s = _wait_s(scenario, rate_rps, prefill, scenario.num_prefill)
    batch = _decode_batch(compute, scenario, rate_rps, scenario.num_decode, [0.0] * len(scenario.classes))
    # A decode rank takes an offer only when it has a seat: waiting for one delays the transfer's end.
    seat_wait_s = _seat_wait_s(scenario, rate_rps, batch, scenario.num_decode)
    exposed = _exposed_s(compute, link, scenario, rate_rps)
    times = []
    for cls, own_s, exposed_s in zip(scenario.classes, prefill, exposed, strict=True):
        moves = cls.output_len > 1
        admission_s = batch.residual_step_s if moves else 0.0
        decode_s = _num_gaps(cls) * batch.gap_s(cls)
        times.append(ArmTimes(queue_s, own_s, exposed_s + seat_wait_s if moves else 0.0, admission_s, decode_s))
    return times


def _stolen_s(compute: ComputeModel, scenario: Scenario, cls: RequestClass) -> float:
    """Seconds that one prompt takes from the decodes of its rank. Chunks share each step's base with them."""
    added_s = compute.chunk_s(cls.input_len)
    return added_s if scenario.policy == "chunked" else compute.base_s + added_s


def _prefill_s(compute: ComputeModel, scenario: Scenario, cls: RequestClass, beside_s: float) -> float:
    """PREFILL_BEGIN to PREFILL_END; ``beside_s`` is what decodes add to each chunk's step (none run beside a whole)."""
    if scenario.chunk_tokens is None:
        return compute.prefill_s(round(cls.input_len))
    num_steps = -(-round(cls.input_len) // scenario.chunk_tokens)
    return compute.prefill_s(round(cls.input_len), scenario.chunk_tokens) + num_steps * beside_s


def _decode_batch(
    compute: ComputeModel, scenario: Scenario, rate_rps: float, num_ranks: int, stolen: list[float]
) -> _Batch:
    """The mean decode batch of one rank, by Little's law: ``b = rate * (O - 1) * gap(1 + b)``.

    A sequence sees itself and b others, and ``gap = step / (1 - rho)``, where rho is the share of time that prompts
    take from decodes. A step is linear in its batch, so the fixed point is a quotient: with
    ``K = rate * (O - 1) / (1 - rho)``, ``b = K (base + seq) / (1 - K seq)``. Never more than the seats, nor than the
    block's other requests on this rank.
    """
    rate = rate_rps / num_ranks
    num_gaps = sum(cls.share * _num_gaps(cls) for cls in scenario.classes)
    seq_s = compute.decode_s(1, _mean_context(scenario))
    mean_stolen_s = sum(cls.share * s for cls, s in zip(scenario.classes, stolen, strict=True))
    rho = rate * mean_stolen_s
    most = max(0.0, min(scenario.num_seats, scenario.num_requests / num_ranks) - 1)
    gaps_per_s = rate * num_gaps / (1 - rho) if rho < 1 else float("inf")
    stable = gaps_per_s * seq_s < 1
    others = min(most, gaps_per_s * (compute.base_s + seq_s) / (1 - gaps_per_s * seq_s)) if stable else most
    step_s = compute.base_s + seq_s * (1 + others)

    def gap_s(cls: RequestClass) -> float:
        longest = step_s + _worst_stall_s(compute, scenario, cls, mean_stolen_s, num_ranks)
        return min(step_s / (1 - rho), longest) if rho < 1 else longest

    return _Batch(others, step_s, gap_s, seq_s)


def _worst_stall_s(
    compute: ComputeModel, scenario: Scenario, cls: RequestClass, mean_stolen_s: float, num_ranks: int
) -> float:
    """What prompts can add to the mean gap at most: a chunk in every step, or all other prompts of the block."""
    if scenario.chunk_tokens is not None:
        longest = max(other.input_len for other in scenario.classes)
        return compute.chunk_s(scenario.chunk_tokens, max(0.0, longest - scenario.chunk_tokens) / 2)
    num_others = max(0.0, scenario.num_requests / num_ranks - 1)
    return num_others * mean_stolen_s / max(1.0, _num_gaps(cls))


def _exposed_s(compute: ComputeModel, link: LinkModel, scenario: Scenario, rate_rps: float) -> list[float]:
    """PREFILL_END to TRANSFER_END. Transfers that meet on a link stretch each other as in a queue for it."""
    wire = [
        link.wire_s(scenario.transfer_bytes(cls.input_len), scenario.num_descriptors(cls.input_len))
        for cls in scenario.classes
    ]
    mean_s = sum(cls.share * s for cls, s in zip(scenario.classes, wire, strict=True))
    num_links = min(scenario.num_prefill, scenario.num_decode)
    stretch = 1 + _wait_s(scenario, rate_rps, wire, num_links) / mean_s
    num_layers = scenario.spec.num_layers if scenario.mode == "layerwise" else 1
    return [
        effective_transfer_s(link.alpha_s, wire_s * stretch, num_layers, _last_step_s(compute, scenario, cls))
        for cls, wire_s in zip(scenario.classes, wire, strict=True)
    ]


def _last_step_s(compute: ComputeModel, scenario: Scenario, cls: RequestClass) -> float:
    """The step that completes a prompt: layers leave one by one while it runs, and hide behind it."""
    chunk = scenario.chunk_tokens or round(cls.input_len)
    last = (round(cls.input_len) - 1) % chunk + 1
    return compute.step_s(last, round(cls.input_len) - last)


def _wait_s(scenario: Scenario, rate_rps: float, service: list[float], num_servers: int) -> float:
    """The mean wait for ``num_servers`` ranks or links that serve each class in ``service[i]`` seconds."""
    mean_s = sum(cls.share * s for cls, s in zip(scenario.classes, service, strict=True))
    square = sum(cls.share * s * s for cls, s in zip(scenario.classes, service, strict=True))
    cv2 = max(0.0, square / mean_s**2 - 1)
    return block_wait_s(scenario.num_requests, rate_rps, mean_s, num_servers, cv2, scenario.arrival_cv2)


def _seat_wait_s(scenario: Scenario, rate_rps: float, batch: _Batch, num_ranks: int) -> float:
    """The mean wait for one of the seats in the decode batches; next to nothing unless they are full."""
    stay_s = sum(cls.share * _num_gaps(cls) * batch.gap_s(cls) for cls in scenario.classes)
    seats = num_ranks * scenario.num_seats
    return block_wait_s(scenario.num_requests, rate_rps, stay_s, seats, 1.0, scenario.arrival_cv2)


def _num_gaps(cls: RequestClass) -> float:
    return max(0.0, cls.output_len - 1)


def _mean_context(scenario: Scenario) -> float:
    """Mean context of a decoding sequence, in tokens: its prompt and half of its output, weighted by its steps."""
    num_gaps = sum(cls.share * _num_gaps(cls) for cls in scenario.classes)
    if num_gaps == 0:
        return 0.0
    total = sum(cls.share * _num_gaps(cls) * (cls.input_len + cls.output_len / 2) for cls in scenario.classes)
    return total / num_gaps


def _at_load(scenario: Scenario, times_at: Callable[[float], list[ArmTimes]]) -> list[ArmTimes]:
    """The arm's times at the offered rate; in a closed loop at the rate that keeps ``concurrency`` requests under way.

    That rate solves Little's law, ``rate * e2e(rate) = concurrency``, by bisection: e2e only grows with the rate.
    """
    if scenario.rate_rps is not None:
        return times_at(scenario.rate_rps)
    assert scenario.concurrency is not None

    def under_way(rate_rps: float) -> float:
        times = times_at(rate_rps)
        return rate_rps * sum(cls.share * t.e2e_s for cls, t in zip(scenario.classes, times, strict=True))

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
