"""The simulator: many steps at once yield the same tables as one by one, and known cases yield known times."""

from __future__ import annotations

import gc
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from xpyd.economics.codecs import CodecTerm
from xpyd.economics.cost import ComputeModel, LinkModel
from xpyd.economics.delays import NO_DELAYS, Delays
from xpyd.economics.engine import EngineModel, Scatter
from xpyd.economics.moving import MovingModel
from xpyd.hybrid import HybridConfig
from xpyd.model.spec import ModelSpec
from xpyd.placement import PlacementConfig
from xpyd.records import StageRow, StepRow, TokenRow, TransferRow
from xpyd.request import Request
from xpyd.router import RouterConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.simulate.account import Account, Histogram, Totals
from xpyd.simulate.cluster import Cluster
from xpyd.simulate.config import Outage, SimulateConfig
from xpyd.simulate.costs import PS_PER_S, Stretch
from xpyd.simulate.hybrid import hybrid_for, threshold
from xpyd.simulate.loads import Loads
from xpyd.simulate.setup import Handover, Setup
from xpyd.simulate.stream import stream_requests
from xpyd.units import s_to_ns
from xpyd.workload.arrivals import ArrivalConfig
from xpyd.workload.config import ClassConfig, WorkloadConfig
from xpyd.workload.lengths import LengthConfig
from xpyd.workload.slo import SloConfig

SETUP = Setup(
    spec=ModelSpec("simulated", 8, 512, 8, 4, 64, 1536, 2048),
    placement=PlacementConfig(num_prefill=2, num_decode=2),
    scheduler=SchedulerConfig("chunked", 16, 256, 16, 96),
    handover=Handover("layerwise", "pull", "prefill", 1 << 20, 8),
    router=RouterConfig("least_outstanding"),
    slo=SloConfig(0.5, 0.02),
    compute=ComputeModel(2.5e-3, 110e-6, 30e-9, 0.3e-3, 1e-6),
    link=LinkModel(alpha_s=2e-4, gamma_s=1e-5, bytes_per_s=1e9),
    options=SimulateConfig(),
    max_retries=2,
    detect_s=0.05,
)


class Rows(list[Any]):
    def write(self, row: Any) -> None:
        self.append(row)


def draw(num: int, rate_rps: float, seed: int = 0) -> list[Request]:
    generator = np.random.default_rng(seed)
    offsets = generator.exponential(1 / rate_rps, num).cumsum()
    inputs, outputs = generator.integers(1, 400, num).tolist(), generator.integers(1, 90, num).tolist()
    return [Request(i, s_to_ns(offsets[i]), inputs[i], outputs[i]) for i in range(num)]


def play(setup: Setup, requests: list[Request], concurrency: int | None = None) -> tuple[Rows, Totals]:
    rows = Rows()
    account = Account(0, setup.slo, rows, with_steps=True, begin_ns=0)
    Cluster(setup, account, lambda request_id: True).play(iter(requests), concurrency)
    return rows, account.totals


COLOCATED = PlacementConfig(num_colocated=3)
ONE_LEFT = SchedulerConfig("chunked", 16, 16, 16, 40)  # chunks of a block: a preempted one often lacks one token
CODEC = CodecTerm("halves", 0.5, 2.0, 3.0)
OUTAGES = SimulateConfig(arms="serve", outages=(Outage(2, 0.3, 0.6), Outage(0, 0.5, 0.9)), speeds=(1.0, 0.7))
SCATTERS = dict.fromkeys(("prefill", "decode"), Scatter((0.9, 1.0, 1.6), (0.8, 1.0, 3.0)))
MOVING = MovingModel(1e-3, 2e-9, 5e-4, 1e-9)
DELAYS = Delays(submit_s=4e-3, leave_s=2e-3, admit_s=3e-3, tell_s=1e-3)
CASES = {
    "layerwise": SETUP,
    "whole": replace(SETUP, handover=Handover("whole", "pull", "decode", 1 << 14, 8)),
    "chunkwise": replace(SETUP, handover=Handover("chunkwise", "pull", "prefill", 1 << 20, 8)),
    "push": replace(SETUP, handover=Handover("layerwise", "push", "prefill", 1 << 20, 8)),
    "round_robin": replace(SETUP, router=RouterConfig("round_robin")),
    "wide": replace(SETUP, placement=PlacementConfig(num_prefill=1, num_decode=1, prefill_tp=2, decode_tp=4)),
    "chunked": replace(SETUP, placement=COLOCATED),
    "prefill_first": replace(SETUP, placement=COLOCATED, scheduler=SchedulerConfig("prefill_first", 16, 256, 16, 96)),
    "static": replace(SETUP, placement=COLOCATED, scheduler=SchedulerConfig("static", 16, 256, 16, 96)),
    "codec": replace(SETUP, codec=CODEC),
    "moving": replace(SETUP, moving=MOVING),
    "moving, push": replace(SETUP, moving=MOVING, handover=Handover("whole", "push", "decode", 1 << 14, 8)),
    "scatter": replace(SETUP, moving=MOVING, scatters=SCATTERS, seed=3),
    "delays": replace(SETUP, delays=DELAYS, handover=Handover("whole", "pull", "decode", 1 << 14, 8)),
    "delays, push": replace(SETUP, delays=DELAYS, handover=Handover("layerwise", "push", "prefill", 1 << 20, 8)),
    "delays, outages": replace(SETUP, delays=DELAYS, options=OUTAGES),
    "delays, failures": replace(SETUP, delays=DELAYS, options=OUTAGES, max_retries=0),
    "moving, outages": replace(SETUP, moving=MOVING, options=OUTAGES),
    "one token left": replace(SETUP, placement=PlacementConfig(num_colocated=1), scheduler=ONE_LEFT),
    "outages": replace(SETUP, options=OUTAGES),
    "failures": replace(SETUP, options=OUTAGES, max_retries=0),
    "colocated outages": replace(SETUP, placement=COLOCATED, options=OUTAGES),
}


def hybrid(setup: Setup, requests: list[Request], num_kv_blocks: int = 96, policy: Any = "cost") -> Setup:
    setup = replace(setup, scheduler=replace(setup.scheduler, num_kv_blocks=num_kv_blocks))
    return replace(setup, hybrid=hybrid_for(setup, HybridConfig(policy), requests))


def in_full(totals: Totals) -> dict[str, Any]:
    found = {each.name: getattr(totals, each.name) for each in fields(totals)}
    return {name: each.state() if isinstance(each, Histogram) else each for name, each in found.items()}


@pytest.mark.parametrize("case", [*CASES, "hybrid", "hybrid, tight"])
def test_many_steps_at_once_yield_the_tables_of_one_by_one(case: str) -> None:
    requests = draw(80, 60.0 if case in CASES else 120.0)
    setup = CASES[case] if case in CASES else hybrid(SETUP, requests, 96 if case == "hybrid" else 40)
    fast, totals = play(setup, requests)
    slow, expected = play(replace(setup, fast=False), requests)
    assert Counter(fast) == Counter(slow)
    assert in_full(totals) == in_full(expected)
    assert totals.num_finished + totals.num_failed == 80
    account = Account(0, setup.slo, None, with_steps=False, begin_ns=0)
    Cluster(setup, account, lambda request_id: False).play(iter(requests))
    assert in_full(account.totals) == in_full(expected), "the sums are those of a run with rows"


def stages(rows: Rows, request_id: int) -> dict[str, int]:
    return {row.stage: row.t_ns for row in rows if isinstance(row, StageRow) and row.request_id == request_id}


def test_a_lone_request_takes_what_the_formulas_say() -> None:
    """64 tokens in one step of 2.5 + 64 * 0.11 + 2080 * 30e-6 = 9.6024 ms; the wire: 4 blocks, 8 layers, one link."""
    one = replace(SETUP, placement=PlacementConfig(num_prefill=1, num_decode=1), handover=CASES["whole"].handover)
    rows, totals = play(one, [Request(0, 1000, 64, 3)])
    found = stages(rows, 0)
    nbytes = 4 * 16 * one.spec.kv_bytes_per_token()
    pieces = 8 * -(-nbytes // 8 // (1 << 14))
    wire_ns = round((2e-4 + pieces * 1e-5 + nbytes / 1e9) * 1e9)
    assert found["prefill_begin"] == 1000
    assert found["prefill_end"] == 1000 + 9_602_400
    assert found["transfer_end"] - found["transfer_begin"] == wire_ns
    (row,) = [row for row in rows if isinstance(row, TransferRow)]
    assert (row.payload_bytes, row.num_pieces) == (nbytes, pieces)
    # Two decode steps of 2.5 + 0.3 ms and 1 us per token of context: 65, then 66.
    tokens = [row.t_ns for row in rows if isinstance(row, TokenRow)]
    assert tokens == [found["decode_admit"] + n for n in (0, 2_865_000, 2_865_000 + 2_866_000)]
    assert totals.itl.max_ps == 2_866_000_000


@pytest.mark.parametrize("first_token", ["prefill", "decode"])
def test_a_lone_request_waits_for_each_message_once(first_token: Any) -> None:
    """4 ms until its prompt begins, 2 until its KV leaves whole, 3 until it decodes; the client hears 1 ms later."""
    one = replace(SETUP, placement=PlacementConfig(num_prefill=1, num_decode=1))
    one = replace(one, handover=replace(CASES["whole"].handover, first_token=first_token))
    (plain_rows, plain), (rows, totals) = (
        play(setup, [Request(0, 1000, 64, 3)]) for setup in (one, replace(one, delays=DELAYS))
    )
    before, found = stages(plain_rows, 0), stages(rows, 0)
    later_ms = {
        "arrived": 0,
        "routed": 0,
        "prefill_begin": 4,
        "prefill_end": 4,
        "transfer_begin": 6,
        "transfer_end": 6,
        "decode_admit": 9,
        "finished": 10,
    }
    assert {stage: found[stage] - before[stage] for stage in before} == {s: ms * 10**6 for s, ms in later_ms.items()}
    tokens, known = ([r for r in own if isinstance(r, TokenRow)] for own in (rows, plain_rows))
    first_ms = 5 if first_token == "prefill" else 10
    assert [(a.t_ns - b.t_ns) // 10**6 for a, b in zip(tokens, known, strict=True)] == [first_ms, 10, 10]
    assert {row.t_ns - row.emitted_ns for row in tokens} == {10**6}
    assert totals.ttft.max_ps - plain.ttft.max_ps == first_ms * 10**9
    assert totals.e2e.max_ps - plain.e2e.max_ps == 10 * 10**9
    by_layers = replace(one, delays=DELAYS, handover=replace(one.handover, mode="layerwise"))
    found = stages(play(by_layers, [Request(0, 1000, 64, 3)])[0], 0)
    assert found["transfer_begin"] < found["prefill_end"], "nothing waits that leaves by layers"


def test_a_limit_is_met_or_missed_by_what_the_client_sees() -> None:
    one = replace(SETUP, placement=PlacementConfig(num_colocated=1))
    ttft_s = 9_602_400e-9  # of 64 tokens
    for tell_s, num_met in ((0.0, 1), (1e-6, 0)):
        setup = replace(one, delays=Delays(tell_s=tell_s), slo=SloConfig(ttft_s, 1.0))
        assert play(setup, [Request(0, 0, 64, 2)])[1].num_met == num_met


@pytest.mark.parametrize("delays", [NO_DELAYS, DELAYS])
def test_a_closed_loop_of_one_sends_the_next_when_the_client_has_heard(delays: Delays) -> None:
    setup = replace(SETUP, placement=PlacementConfig(num_colocated=1), delays=delays)
    rows, totals = play(setup, [Request(number, 0, 64, 2) for number in range(3)], concurrency=1)
    assert totals.num_finished == 3
    for number in (1, 2):
        assert stages(rows, number)["arrived"] == stages(rows, number - 1)["finished"]


@pytest.mark.parametrize(("num_prefill", "num_decode"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("gain", [1.0, 1.25, 0.8])
def test_two_transfers_at_one_end_take_half_the_link_each(num_prefill: int, num_decode: int, gain: float) -> None:
    """And more or less than half where both together move more or less than one."""
    placement = PlacementConfig(num_prefill=num_prefill, num_decode=num_decode)
    link = replace(SETUP.link, gain_2=gain)
    two = replace(SETUP, placement=placement, handover=CASES["whole"].handover, link=link)
    alone = next(row for row in play(two, [Request(0, 0, 64, 2)])[0] if isinstance(row, TransferRow))
    before = [Request(2, 0, 64, 1)] * (num_prefill == 1)  # both wait for it, and are computed in one step
    rows = play(two, [*before, Request(0, 1000, 64, 2), Request(1, 1000, 64, 2)])[0]
    shared = [row for row in rows if isinstance(row, TransferRow)]
    alpha_ns = 200_000
    assert [row.end_ns - row.begin_ns - alpha_ns for row in shared] == [
        pytest.approx(2 / gain * (alone.end_ns - alone.begin_ns - alpha_ns), rel=1e-5)
    ] * 2


@pytest.mark.parametrize(("pieces_in_flight", "in_order"), [(1 << 10, True), (1, False)])
def test_transfers_between_the_same_ranks_go_in_order_where_a_window_holds_one(
    pieces_in_flight: int, in_order: bool
) -> None:
    """The pieces of one are posted before any of the next; longer ones take turns, an equal share."""
    handover = replace(CASES["whole"].handover, pieces_in_flight=pieces_in_flight)
    one = replace(CASES["whole"], placement=PlacementConfig(num_prefill=1, num_decode=1), handover=handover)
    alone = next(row for row in play(one, [Request(0, 0, 64, 2)])[0] if isinstance(row, TransferRow))
    alpha_ns = 200_000
    wire_ns = alone.end_ns - alone.begin_ns - alpha_ns
    before = Request(3, 0, 64, 1)  # the others wait for it, and are computed in one step
    rows = play(one, [before, *(Request(n, 1000, 64, 2) for n in range(3))])[0]
    shared = sorted((row for row in rows if isinstance(row, TransferRow)), key=lambda row: row.end_ns)
    assert len({row.begin_ns for row in shared}) == 1
    assert [row.num_inflight for row in shared] == [0, 1, 2]
    times = [row.end_ns - row.begin_ns - alpha_ns for row in shared]
    assert times == [pytest.approx(n * wire_ns, rel=1e-5) for n in ((1, 2, 3) if in_order else (3, 3, 3))]


@pytest.mark.parametrize("case", ["layerwise", "push", "chunked", "prefill_first"])
def test_the_sums_know_who_met_the_limits(case: str) -> None:
    """The longest gap of each request, kept without its tokens, against the token rows."""
    setup = replace(CASES[case], slo=SloConfig(0.25, 0.03))
    rows, totals = play(setup, draw(80, 40.0))
    met = 0
    for number in range(80):
        times = sorted(row.t_ns for row in rows if isinstance(row, TokenRow) and row.request_id == number)
        gaps = np.diff(times)
        in_time = times[0] - stages(rows, number)["arrived"] <= s_to_ns(0.25)
        met += bool(in_time and (not len(gaps) or gaps.max() <= s_to_ns(0.03)))
    assert totals.num_met == met
    assert 0 < met < 80


def test_a_codec_halves_the_wire_and_keeps_both_workers_busy() -> None:
    """Against the same request without: encoding before the KV leaves, decoding before the next step."""
    one = replace(CASES["whole"], placement=PlacementConfig(num_prefill=1, num_decode=1))
    coded = replace(one, codec=CODEC)
    (plain_rows, _), (rows, _) = (play(setup, [Request(0, 1000, 64, 3)]) for setup in (one, coded))
    plain, found = stages(plain_rows, 0), stages(rows, 0)
    nbytes = 4 * 16 * one.spec.kv_bytes_per_token()
    assert found["transfer_begin"] - found["prefill_end"] == round(nbytes * 2.0)  # nanoseconds: 2 s for 1e9 bytes
    saved_ns = round(nbytes / 2) + 1e4 * (8 * -(-nbytes // 8 // (1 << 14)) - 8 * -(-nbytes // 16 // (1 << 14)))
    transfers = [way["transfer_end"] - way["transfer_begin"] for way in (plain, found)]
    assert transfers[0] - transfers[1] == pytest.approx(saved_ns, abs=2)
    steps = [way["finished"] - way["transfer_end"] for way in (found, plain)]
    assert steps[0] - steps[1] == nbytes * 3.0


def test_decode_steps_answer_for_the_kv_that_lands_beside_them() -> None:
    """Request 0 decodes all the time that request 1's KV needs, so its end is later by what all of that costs."""
    one = replace(CASES["whole"], placement=PlacementConfig(num_prefill=1, num_decode=1))
    requests = [Request(0, 1000, 64, 90), Request(1, s_to_ns(0.1), 160, 2)]
    nbytes = 10 * 16 * one.spec.kv_bytes_per_token()
    ends = {}
    for name, moving in (("none", one.moving), ("bytes", MovingModel(0, 2e-9)), ("steps", MovingModel(1e-3))):
        rows, _ = play(replace(one, moving=moving), requests)
        ends[name] = stages(rows, 0)["finished"]
        if name == "steps":
            (moved,) = [row for row in rows if isinstance(row, TransferRow) and row.request_id == 1]
            steps = [row for row in rows if isinstance(row, StepRow) and row.role == "decode"]
            beside = [step for step in steps if step.begin_ns < moved.end_ns and step.end_ns > moved.reserved_ns]
            assert len(beside) > 1
    assert ends["bytes"] - ends["none"] == pytest.approx(nbytes * 2, abs=len(steps))
    assert ends["steps"] - ends["none"] == len(beside) * 10**6


def test_kv_that_is_pulled_whole_leaves_with_the_last_layer_also_where_another_prompt_follows() -> None:
    one = replace(CASES["whole"], placement=PlacementConfig(num_prefill=1, num_decode=1))
    rows, _ = play(one, [Request(0, 0, 256, 2), Request(1, 0, 256, 2)])
    (computed,) = [r.t_ns for r in rows if isinstance(r, StageRow) and r.stage == "prefill_end" and not r.request_id]
    assert next(r.begin_ns for r in rows if isinstance(r, TransferRow) and not r.request_id) == computed


def test_steps_scatter_as_they_are_told_and_the_same_for_the_same_seed() -> None:
    one = replace(CASES["whole"], placement=PlacementConfig(num_prefill=1, num_decode=1))
    requests = draw(20, 20.0)

    def lengths(**changes: Any) -> dict[str, list[int]]:
        steps = [row for row in play(replace(one, **changes), requests)[0] if isinstance(row, StepRow)]
        return {role: [s.end_ns - s.begin_ns for s in steps if s.role == role] for role in ("prefill", "decode")}

    lone = play(one, [Request(0, 1000, 64, 3)])[0]
    doubled = play(replace(one, scatters={"decode": Scatter((1.0,), (2.0,))}), [Request(0, 1000, 64, 3)])[0]
    for role, factor in (("prefill", 1), ("decode", 2)):
        found, plain = (
            [r.end_ns - r.begin_ns for r in rows if isinstance(r, StepRow) and r.role == role]
            for rows in (doubled, lone)
        )
        assert found == [factor * each for each in plain]
    wide = {"decode": Scatter((1.0,), (0.5, 1.0, 1.5))}
    assert lengths(scatters=wide, seed=1) == lengths(scatters=wide, seed=1) != lengths(scatters=wide, seed=2)


def test_what_chunks_hide_of_a_step_is_hidden_once() -> None:
    """A prompt of 64 tokens takes 7.1024 ms beside the base of 2.5 ms, of which 1 ms is hidden.

    One of a single token takes 0.10001 ms, and hides no more than that: more work is never less time.
    """
    one = replace(SETUP, placement=PlacementConfig(num_prefill=1, num_decode=1), handover=CASES["whole"].handover)
    hiding = replace(one, compute=replace(one.compute, hidden_s=1e-3))
    rows, _ = play(hiding, [Request(0, 0, 64, 1), Request(1, 1000, 64, 1), Request(2, 1000, 64, 2)])
    found = [(row.num_prefill_seqs, row.end_ns - row.begin_ns) for row in rows if isinstance(row, StepRow)]
    assert found == [(1, 8_602_400), (2, 15_704_800), (0, 2_865_000)]
    rows, _ = play(hiding, [Request(0, 0, 1, 1)])
    assert [row.end_ns - row.begin_ns for row in rows if isinstance(row, StepRow)] == [2_500_000]


def test_a_step_of_each_role_takes_what_its_engine_makes_of_it() -> None:
    """64 tokens alone take 9.6024 ms, a decode step 2.865 ms."""
    one = replace(SETUP, placement=PlacementConfig(num_prefill=1, num_decode=1), handover=CASES["whole"].handover)
    engines = {"prefill": EngineModel(1.4, 1.5), "decode": EngineModel(2.0, 9.0)}
    rows, _ = play(replace(one, engines=engines), [Request(0, 1000, 64, 2)])
    found = {row.role: row.end_ns - row.begin_ns for row in rows if isinstance(row, StepRow)}
    assert found == {"prefill": 14_403_600 - 250_000, "decode": 2 * 2_865_000}


def test_a_prompt_answers_for_the_kv_that_leaves_beside_it() -> None:
    one = replace(CASES["whole"], placement=PlacementConfig(num_prefill=1, num_decode=1))
    requests = [Request(0, 0, 64, 2), Request(1, 0, 250, 1)]  # the second is computed while the first one's KV leaves
    sent = [play(replace(one, moving=moving), requests)[0] for moving in (one.moving, MovingModel(0, 0, 1e-3, 1e-9))]
    plain, later = (stages(rows, 1)["prefill_end"] for rows in sent)
    assert later - plain == 10**6 + 64 * one.spec.kv_bytes_per_token()


@pytest.mark.parametrize("policy", ["stay", "move"])
def test_hybrid_of_one_kind_is_the_colocated_or_the_split_arm(policy: Any) -> None:
    """Requests one after another, so that it is no matter who is asked: alike to the nanosecond."""
    requests = [Request(i, i * 10**9, 64 + i, 5) for i in range(4)]
    one = replace(SETUP, placement=PlacementConfig(num_prefill=1, num_decode=1))
    pure = one if policy == "move" else replace(one, placement=PlacementConfig(num_colocated=2))
    found, expected = play(hybrid(one, requests, policy=policy), requests), play(pure, requests)
    for number in range(4):
        assert stages(found[0], number) == stages(expected[0], number)
    assert found[1].kv_bytes == expected[1].kv_bytes


def test_hybrid_moves_the_longer_prompts() -> None:
    requests = draw(80, 120.0)
    setup, rows = hybrid(SETUP, requests, 400), Rows()
    cluster = Cluster(setup, Account(0, setup.slo, rows, with_steps=True, begin_ns=0), lambda _: True)
    cluster.play(iter(requests))
    assert cluster.hybrid is not None
    moved, stayed = cluster.hybrid.moved, cluster.hybrid.stayed
    assert sorted([*moved, *stayed]) == sorted(request.input_len for request in requests)
    assert len(moved) == sum(isinstance(row, TransferRow) for row in rows)
    assert 0 < len(moved) < 80
    assert np.mean(moved) > np.mean(stayed)
    assert threshold(moved, stayed) in moved
    assert threshold([10, 20, 30], [1, 2, 25]) == 10
    assert threshold([30, 40], [1, 2, 35]) == 30
    assert np.isnan(threshold([], [1]))


def test_layerwise_exposes_what_the_closed_form_says() -> None:
    """effective_transfer_s: with a wire faster than the prompt's step only the last layer's piece is exposed."""
    rows, _ = play(replace(SETUP, placement=PlacementConfig(num_prefill=1, num_decode=1)), [Request(0, 0, 64, 2)])
    found, nbytes = stages(rows, 0), 4 * 16 * SETUP.spec.kv_bytes_per_token()
    last_layer_s = (nbytes / 1e9 + 8 * 1e-5) / 8
    assert found["transfer_end"] - found["prefill_end"] == pytest.approx((2e-4 + last_layer_s) * 1e9, rel=1e-4)


def test_an_outage_delays_its_requests_and_none_is_lost() -> None:
    """Down from 20 ms, missed at 70 ms: computed again on the other instance, and every token comes once."""
    setup = replace(
        SETUP,
        placement=PlacementConfig(num_prefill=1, num_decode=2),
        options=SimulateConfig(arms="serve", outages=(Outage(1, 0.02, 1.0),)),
    )
    rows, totals = play(setup, [Request(0, 0, 64, 20)])
    found = stages(rows, 0)
    assert found["retried"] == 70_000_000
    tokens = [row for row in rows if isinstance(row, TokenRow)]
    assert sorted(row.index for row in tokens) == list(range(20))
    assert {row.rank for row in tokens if row.t_ns > found["retried"]} == {3}
    assert totals.num_finished == totals.num_retries == 1


def test_two_prompts_of_one_step_are_taken_back_together() -> None:
    """Both were to decode where nobody is up any more, which is noticed during the step that computes them."""
    setup = replace(
        SETUP,
        placement=PlacementConfig(num_prefill=1, num_decode=2),
        router=RouterConfig("round_robin"),
        options=SimulateConfig(arms="serve", outages=(Outage(1, 0.0, 1.0),)),
        detect_s=0.02,
    )
    rows, totals = play(setup, [Request(number, 0, 70, 5) for number in range(4)])
    assert [row.request_id for row in rows if isinstance(row, StageRow) and row.stage == "retried"] == [0, 2]
    assert totals.num_finished == 4


@pytest.mark.parametrize("case", ["layerwise", "push", "codec", "outages", "failures", "delays", "delays, outages"])
def test_requests_that_end_leave_no_cycles_behind(case: str) -> None:
    """So memory stays flat though nothing is collected while a block is played."""
    cluster = Cluster(CASES[case], Account(0, SETUP.slo, None, with_steps=False, begin_ns=0), lambda request_id: False)
    gc.collect()
    gc.disable()
    try:
        cluster.play(iter(draw(80, 60.0)))
        assert gc.collect() == 0
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("delays", [NO_DELAYS, DELAYS])
def test_a_closed_loop_keeps_its_number_under_way(delays: Delays) -> None:
    requests = [replace(request, arrival_offset_ns=0) for request in draw(30, 1.0)]
    rows, totals = play(replace(SETUP, delays=delays), requests, concurrency=4)
    ways = [stages(rows, number) for number in range(30)]
    moments = sorted(way["arrived"] for way in ways)
    assert max(sum(way["arrived"] <= now < way["finished"] for way in ways) for now in moments) == 4
    assert totals.num_finished == 30


@pytest.mark.parametrize("policy", ["round_robin", "least_outstanding"])
@pytest.mark.parametrize("num", [1, 5, 8])
def test_a_pool_picks_as_the_router_does(policy: Any, num: int) -> None:
    generator, known = np.random.default_rng(0), [0] * num
    loads, router = Loads(num, RouterConfig(policy)), RouterConfig(policy).build()
    for _ in range(300):
        index, change = int(generator.integers(num)), int(generator.integers(-1, 3))
        loads.add(index, change)
        known[index] += change
        assert loads.pick(0) == router.route(known)


def test_a_pick_leaves_out_what_is_down() -> None:
    loads = Loads(3, RouterConfig())
    for index in (0, 2):
        loads.down(index)
    loads.add(1, 100)
    loads.add(2, 7)
    assert [loads.pick(0), loads.pick(0)] == [1, 1]
    loads.down(1)
    assert loads.pick(0) is None
    loads.back(2)
    loads.forget(0)
    assert loads.pick(0) == 2
    loads.back(0)
    assert loads.pick(0) == 0


def test_loads_fall_with_every_step_that_has_ended() -> None:
    """Three stretches that begin one after another, one cut short under way."""
    loads = Loads(3, RouterConfig())
    running = {0: (Stretch(1000, 700, 13, 9), 4), 1: (Stretch(1500, 311, 0, 20), 7), 2: (Stretch(2000, 90, 5, 30), 1)}
    for index, (stretch, batch) in running.items():
        loads.add(index, 1000)
        loads.run(index, stretch, batch)
    for now in range(1000, 12000, 7):
        if now == 5004:
            running[1][0].num_steps = running[1][0].ended_before(now) + 1
        ended = [sum(s.begin_ps + s.after(n) < now for n in range(1, s.num_steps + 1)) for s, _ in running.values()]
        assert [stretch.ended_before(now) for stretch, _ in running.values()] == ended
        assert loads.at(now) == [1000 - running[index][1] * ended[index] for index in range(3)]
    for index, (stretch, batch) in running.items():
        loads.ended(index, batch * stretch.num_steps)
    assert loads.at(13000) == [1000 - 36, 1000 - 7 * running[1][0].num_steps, 1000 - 30]


def test_histograms_are_right_to_a_per_cent() -> None:
    histogram, values = Histogram(), (np.random.default_rng(0).lognormal(-3, 1, 5000) * PS_PER_S).astype(int)
    for value in values.tolist():
        histogram.add(value)
    for share in (0.5, 0.99):
        exact = np.quantile(values, share, method="inverted_cdf") / PS_PER_S
        assert histogram.quantile_s(share) == pytest.approx(exact, rel=0.01)
    assert histogram.sum_ps == values.sum()


def test_a_stream_of_one_run_is_what_a_real_run_plays() -> None:
    length = LengthConfig("fixed", 5)
    workload = WorkloadConfig(
        4, arrival=ArrivalConfig("poisson", 10.0), classes=(ClassConfig("all", 1.0, length, length),)
    )
    assert list(stream_requests(workload, 3, None)) == workload.build(3)
    many = list(stream_requests(workload, 0, 10))
    assert [request.request_id for request in many] == list(range(10))
    offsets = [request.arrival_offset_ns for request in many]
    assert offsets == sorted(offsets)
    assert offsets[4] - offsets[3] == workload.build(1)[0].arrival_offset_ns
