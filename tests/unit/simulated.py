"""Two arms in simulated time: the real schedulers, a step model for a clock, round robin, and nothing else.

What the closed-form prediction is held against. Ranks do not influence each other, so each plays its own arrivals.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xpyd.economics.cost import ComputeModel, LinkModel, effective_transfer_s
from xpyd.economics.ledger import ArmTimes, length_class
from xpyd.model.spec import ModelSpec
from xpyd.request import Request
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import Policy, SchedulerConfig
from xpyd.scheduler.decode_only import DecodeOnlyScheduler
from xpyd.scheduler.prefill_first import PrefillFirstScheduler
from xpyd.scheduler.sequence import Sequence
from xpyd.units import NS_PER_S, s_to_ns

COMPUTE = ComputeModel(2.5e-3, 110e-6, 30e-9, 0.3e-3, 1e-6)
LINK = LinkModel(alpha_s=2e-4, gamma_s=1e-5, bytes_per_s=1e9)
SPEC = ModelSpec("simulated", 8, 512, 8, 4, 64, 1536, 2048)
SCHEDULERS: dict[str, type[Scheduler]] = {"chunked": ChunkedScheduler, "prefill_first": PrefillFirstScheduler}


@dataclass
class Times:
    """Seconds: when prefill began, when it ended, when the last step ended, and the step that completed the prompt."""

    begin_s: float = 0.0
    first_s: float = 0.0
    end_s: float = 0.0
    last_step_s: float = 0.0


def simulate(
    policy: Policy, rate_rps: float, num_requests: int, num_blocks: int
) -> tuple[dict[tuple[str, str], ArmTimes], list[Request]]:
    """Mean stage times by (length class, arm) over Poisson blocks, 1P1D against 2 colocated ranks, and the requests."""
    rows: defaultdict[tuple[str, str], list[list[float]]] = defaultdict(list)
    every = []
    for seed in range(num_blocks):
        requests = draw(np.random.default_rng(seed), rate_rps, num_requests)
        every += requests
        for request, times in colocated(policy, requests):
            arrived_s = request.arrival_offset_ns / NS_PER_S
            stages = [times.begin_s - arrived_s, times.first_s - times.begin_s, 0.0, 0.0, times.end_s - times.first_s]
            rows[length_class(request.input_len), "colocated"].append(stages)
        for request, stages in disaggregated(policy, requests):
            rows[length_class(request.input_len), "disaggregated"].append(stages)
    return {key: ArmTimes(*np.mean(stages, axis=0)) for key, stages in rows.items()}, every


def draw(generator: np.random.Generator, rate_rps: float, num_requests: int) -> list[Request]:
    """Short chat beside long documents."""
    offsets_s = generator.exponential(1 / rate_rps, num_requests).cumsum()
    requests = []
    for number, offset_s in enumerate(offsets_s):
        chat = generator.random() < 0.8
        input_len = int(generator.integers(32, 129) if chat else generator.integers(560, 769))
        requests.append(Request(number, s_to_ns(offset_s), input_len, int(generator.integers(20, 49))))
    return requests


def colocated(policy: Policy, requests: list[Request]) -> Iterable[tuple[Request, Times]]:
    for rank in range(2):
        mine = requests[rank::2]
        times = play(
            make(SCHEDULERS[policy], policy), {r.request_id: r.arrival_offset_ns / NS_PER_S for r in mine}, mine
        )
        yield from ((request, times[request.request_id]) for request in mine)


def disaggregated(policy: Policy, requests: list[Request]) -> Iterable[tuple[Request, list[float]]]:
    due = {r.request_id: r.arrival_offset_ns / NS_PER_S for r in requests}
    prompts = [Request(r.request_id, r.arrival_offset_ns, r.input_len, 1) for r in requests]
    prefill = play(make(SCHEDULERS[policy], policy), due, prompts)
    landed = {}
    for request in requests:
        times = prefill[request.request_id]
        wire_s = LINK.wire_s(-(-request.input_len // 16) * 16 * SPEC.kv_bytes_per_token(), SPEC.num_layers)
        landed[request.request_id] = times.first_s + effective_transfer_s(
            LINK.alpha_s, wire_s, SPEC.num_layers, times.last_step_s
        )
    decode = play(make(DecodeOnlyScheduler, policy), landed, requests)
    for request in requests:
        number = request.request_id
        before, after = prefill[number], decode[number]
        yield (
            request,
            [
                before.begin_s - due[number],
                before.first_s - before.begin_s,
                landed[number] - before.first_s,
                after.begin_s - landed[number],
                after.end_s - after.begin_s,
            ],
        )


def make(scheduler: type[Scheduler], policy: Policy) -> Scheduler:
    return scheduler(SchedulerConfig(policy, 32, 256, 16, 512))


def play(scheduler: Scheduler, due_s: dict[int, float], requests: list[Request]) -> dict[int, Times]:
    """Run one rank until every request has ended; a decode rank admits what is due as if its KV were there."""
    waiting = sorted(requests, key=lambda request: due_s[request.request_id])
    found = {request.request_id: Times() for request in requests}
    now_s, left = 0.0, len(requests)
    while left:
        while waiting and due_s[waiting[0].request_id] <= now_s:
            enter(scheduler, waiting.pop(0), found, now_s)
        plan = scheduler.schedule()
        if plan.empty:
            now_s = due_s[waiting[0].request_id]
            continue
        context = sum(chunk.start for chunk in plan.decodes)
        step_s = COMPUTE.step_s(0, 0, len(plan.decodes), context) + sum(
            COMPUTE.chunk_s(chunk.num_tokens, chunk.start) for chunk in plan.prefills
        )
        for chunk in plan.prefills:
            times = found[chunk.sequence.request_id]
            times.begin_s = now_s if chunk.start == 0 else times.begin_s
            if chunk.samples:
                times.first_s, times.last_step_s = now_s + step_s, step_s
        now_s += step_s
        sampled = {c.sequence.request_id: 0 for c in (*plan.prefills, *plan.decodes) if c.samples}
        for sequence in scheduler.commit(plan, sampled):
            found[sequence.request_id].end_s = now_s
            scheduler.release(sequence)
            left -= 1
    return found


def enter(scheduler: Scheduler, request: Request, found: dict[int, Times], now_s: float) -> None:
    prompt = [0] * request.input_len
    if not isinstance(scheduler, DecodeOnlyScheduler):
        scheduler.add(Sequence(request.request_id, prompt, request.output_len))
        return
    table = scheduler.reserve(-(-request.input_len // 16))
    assert table is not None, "the pool is large enough for every load that is simulated"
    found[request.request_id].begin_s = now_s
    scheduler.admit(Sequence(request.request_id, prompt, request.output_len, [0], request.input_len, table))
