"""Hybrid routing by hand: what either way costs, which is taken, what it degenerates to, and which moves are barred."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from xpyd import dispatch as dispatch_module
from xpyd import hybrid
from xpyd.dispatch import HybridDispatch, KvMap, PoolDispatch, Way
from xpyd.economics.cost import ComputeFit, ComputeModel, LinkFit, LinkModel
from xpyd.economics.delays import Delays
from xpyd.economics.nnls import Score
from xpyd.economics.scenario import Calibration, RequestClass, Scenario
from xpyd.hybrid import Decision, Expected, HybridConfig, HybridPolicy, Reckoning, decision_row, expected_loads
from xpyd.model.spec import ModelSpec
from xpyd.placement import PlacementConfig, Role, make_hybrid, place
from xpyd.request import Request
from xpyd.router import KvAware, LeastOutstanding

MS = 1e-3
SPEC = ModelSpec("test", 2, 32, 4, 2, 8, 64, 128)  # 2 layers; K and V, 2 heads of 8 in 4 bytes: 256 B a token
SCORE = Score(1, 0.0, 0.0, 1.0)
# A step 4 ms, a prompt token 0.1 ms, a decode 1 ms whatever its context; the wire 1 ms and 1 MB/s.
COMPUTE = ComputeModel(4 * MS, 0.1 * MS, 0.0, 1 * MS, 0.0)
LINK = LinkModel(1 * MS, 0.0, 1e6)
SCENARIO = Scenario(
    SPEC,
    (RequestClass(1.0, 100, 11),),
    num_requests=1,  # nobody else is expected
    num_prefill=1,
    num_decode=1,
    policy="prefill_first",
    max_num_seqs=32,
    max_num_batched_tokens=256,
    block_size=10,
    num_kv_blocks=100_000,
    mode="whole",
    max_piece_bytes=1 << 20,
    rate_rps=1e-6,
)
EVERYBODY = (1, 2)


def calibration(link: LinkModel = LINK, compute: ComputeModel = COMPUTE) -> Calibration:
    return Calibration(ComputeFit(compute, SCORE), LinkFit(link, SCORE))


def policy(
    config: HybridConfig | None = None,
    link: LinkModel = LINK,
    scenario: Scenario = SCENARIO,
    pools: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (2,)),
) -> HybridPolicy:
    return HybridPolicy(config or HybridConfig("cost"), calibration(link), scenario, pools)


def send(made: HybridPolicy, request_id: int, decision: Decision, now_s: float = 0.0, input_len: int = 100) -> None:
    made.sent(request_id, input_len, decision.chosen, now_s)


def test_both_ways_on_idle_ranks_cost_what_they_cost_alone() -> None:
    """Prefill 4 + 10 ms; 10 gaps of 4 + 1; 100 tokens are 25,600 bytes: 25.6 ms + 1 ms; half a step."""
    found = policy().decide(100, 11, EVERYBODY, 0.0, 1)
    assert found.move is not None
    assert found.stay.total_s == pytest.approx((14 + 50) * MS)
    assert found.move.exposed_transfer_s == pytest.approx((1 + 25.6) * MS)
    assert found.move.admission_s == pytest.approx(2 * MS)
    assert found.move.total_s == pytest.approx((14 + 50 + 1 + 25.6 + 2) * MS)
    assert (found.chosen, found.reason) == (found.stay, "staying costs less")


def test_a_move_waits_for_messages_that_a_request_that_stays_does_not() -> None:
    waits = replace(calibration(), delays=Delays(submit_s=7 * MS, leave_s=2 * MS, admit_s=3 * MS, tell_s=9 * MS))
    plain, found = (
        HybridPolicy(HybridConfig("cost"), each, SCENARIO, ((1,), (2,))).decide(100, 11, EVERYBODY, 0.0, 1)
        for each in (calibration(), waits)
    )
    assert plain.move is not None
    assert found.move is not None
    assert found.stay.total_s == plain.stay.total_s
    assert found.move.exposed_transfer_s - plain.move.exposed_transfer_s == pytest.approx(2 * MS)
    assert found.move.total_s - plain.move.total_s == pytest.approx(5 * MS)


def test_decodes_beside_a_prompt_are_a_cost_of_it() -> None:
    """Two requests stay on rank 1 and have their first token."""
    made = policy()
    for number in range(2):
        way = made.ways(100, 11, EVERYBODY, 0.0).stay(1)
        made.sent(number, 100, way, 0.0)
        made.first_token(number, way, 0.0)
    there = made.ways(100, 11, EVERYBODY, 0.0).stay(1)
    assert there.queue_s == pytest.approx(3 * MS), "half a step of 4 + 2"
    assert there.decode_s == pytest.approx(10 * (4 + 1 + 2) * MS)
    assert there.imposed_s == pytest.approx((2 * 14 + 10 * 2) * MS), "2 wait for the prompt, and for 10 longer steps"
    assert made.ways(100, 11, EVERYBODY, 0.0).stay(2).total_s < there.total_s


def test_a_queue_counts_until_it_is_worked_off() -> None:
    made = policy()
    for number in range(2):
        made.sent(number, 100, made.ways(100, 11, EVERYBODY, 0.0).stay(1), 0.0)
    assert made.loads[1].backlog_s(0.0) == pytest.approx(28 * MS)
    assert made.loads[1].backlog_s(0.010) == pytest.approx(18 * MS)
    assert made.loads[1].backlog_s(9.0) == pytest.approx(14 * MS), "the one behind has not begun"
    first = made.ways(100, 11, EVERYBODY, 0.0).stay(1)
    made.first_token(0, first, 9.0)
    assert made.loads[1].backlog_s(9.0) == pytest.approx(14 * MS)
    made.ended(1, first, 9.0)
    assert made.loads[1].backlog_s(9.0) == 0


def test_among_alike_ranks_those_that_stay_go_where_the_colocated_arm_sends_them() -> None:
    """Rank 1 decodes a hundred and rank 2 none. A move has to cost less than staying on either."""
    made = policy(link=LinkModel(0.0, 0.0, 1e12))
    way = made.ways(100, 11, EVERYBODY, 0.0).stay(1)
    for number in range(100):
        made.sent(number, 100, way, 0.0)
        made.first_token(number, way, 0.0)
    for home in EVERYBODY:
        found = made.decide(100, 11, EVERYBODY, 0.0, home)
        assert (found.chosen.prefill_rank, found.chosen.decode_rank) == (home, home)
        assert found.reason == "staying costs less"


def crowded(num_requests: int = 400) -> Scenario:
    """A load at which splitting is far better: long prompts stall everybody, decodes cost nothing beside each other."""
    return replace(SCENARIO, classes=(RequestClass(1.0, 1000, 401),), num_requests=num_requests, rate_rps=4.0)


SHARED = ComputeModel(4 * MS, 0.1 * MS, 0.0, 0.0, 0.0)  # a decode beside others is free


def test_expected_loads_are_apart_where_splitting_is_better() -> None:
    prefill, decode = expected_loads(calibration(LinkModel(0.0, 0.0, 1e12), SHARED), crowded())
    assert prefill.num_decodes == 0
    assert prefill.prefill_share == pytest.approx(4.0 * 0.104)
    assert decode.prefill_share == 0
    assert decode.num_decodes > 0
    both = expected_loads(calibration(LinkModel(0.0, 0.0, 1e3), SHARED), crowded())
    assert both[0] == both[1]
    assert both[0].prefill_share == pytest.approx(4.0 * 0.104 / 2)


def test_it_degenerates_to_either_pure_arm() -> None:
    """On a free wire all move, on a slow one all stay, on both ranks in turn; so they do where that is asked for."""
    for link, config, moves in (
        (LinkModel(0.0, 0.0, 1e12), HybridConfig("cost"), True),
        (LinkModel(0.0, 0.0, 1e3), HybridConfig("cost"), False),
        (LinkModel(0.0, 0.0, 1e3), HybridConfig("move"), True),
        (LinkModel(0.0, 0.0, 1e12), HybridConfig("stay"), False),
    ):
        made = HybridPolicy(config, calibration(link, SHARED), crowded(), ((1,), (2,)))
        ways = set()
        for number in range(8):
            found = made.decide(1000, 401, EVERYBODY, float(number), EVERYBODY[number % 2])
            ways.add((found.chosen.prefill_rank, found.chosen.decode_rank))
            send(made, number, found, float(number), 1000)
            made.first_token(number, found.chosen, number + 0.2)
            made.landed(found.chosen)
            made.ended(number, found.chosen, number + 0.9)
        assert ways == ({(1, 2)} if moves else {(1, 1), (2, 2)}), (link, config)


def test_short_prompts_stay_where_long_ones_move() -> None:
    """On one link: a short prompt hardly stalls the decodes that are expected on rank 2, a long one does."""
    classes = RequestClass(0.5, 1000, 401), RequestClass(0.5, 20, 401)
    scenario = replace(crowded(), classes=classes, mode="layerwise")
    link = LinkModel(70 * MS, 0.0, 1e8)
    made = HybridPolicy(HybridConfig("cost", 0.0), calibration(link, SHARED), scenario, ((1,), (2,)))
    short, long = made.decide(20, 401, EVERYBODY, 0.0, 1), made.decide(1000, 401, EVERYBODY, 0.0, 1)
    assert (short.chosen.moves, short.chosen.decode_rank) == (False, 2)
    assert (long.chosen.prefill_rank, long.chosen.decode_rank) == (1, 2)


def test_a_move_has_to_save_the_margin() -> None:
    config, free = HybridConfig("cost", margin=0.9), LinkModel(0.0, 0.0, 1e12)
    made = HybridPolicy(config, calibration(free, SHARED), crowded(), ((1,), (2,)))
    assert made.decide(1000, 401, EVERYBODY, 0.0, 1).reason == "a move saves less than the margin"


def test_one_token_never_moves_and_a_lost_rank_gets_nothing() -> None:
    made = policy(HybridConfig("move"))
    assert made.decide(100, 1, EVERYBODY, 0.0, 1).reason == "nothing to decode"
    alone = made.decide(100, 11, (2,), 0.0, 2)
    assert (alone.chosen.prefill_rank, alone.chosen.moves, alone.reason) == (2, False, "no free way to another rank")


def test_no_ring_of_ranks_that_wait_for_each_other() -> None:
    """1 -> 3 and 2 -> 4 under way, then 3 -> 2: now 4 -> 1 would close the ring 1 3 2 4, until one has landed."""
    made = policy(scenario=replace(SCENARIO, num_prefill=2, num_decode=2), pools=((1, 2), (3, 4)))
    everybody = (1, 2, 3, 4)

    def moves() -> dict[tuple[int, int], Reckoning]:
        found = made.moves(made.ways(100, 11, everybody, 0.0), 0.0)
        return {(way.prefill_rank, way.decode_rank): way for way in found}

    ways = moves()
    for number, pair in enumerate(((1, 3), (2, 4), (3, 2))):
        made.sent(number, 100, ways[pair], 0.0)
    assert set(moves()) == {(1, 3), (1, 4), (2, 4), (3, 2)}
    made.landed(ways[3, 2])
    assert set(moves()) == {(1, 3), (1, 4), (2, 3), (2, 4), (3, 2), (4, 1)}


def test_nothing_but_moves_tells_the_arm_from_the_colocated_one() -> None:
    """Requests that all stay go where the same router sends them there, whatever has come of the ones before."""
    slow = policy(link=LinkModel(0.0, 0.0, 1e3))
    arms = [HybridDispatch(slow, PoolDispatch(LeastOutstanding(), None)), PoolDispatch(LeastOutstanding(), None)]
    lengths = np.random.default_rng(0).integers(2, 200, (40, 2)).tolist()
    ranks = []
    for arm in arms:
        ways = {}
        for number, (input_len, output_len) in enumerate(lengths):
            request = Request(number, 0, input_len, output_len)
            ways[number] = arm.route(request, lambda *roles: EVERYBODY, number / 10)
            arm.sent(request, ways[number], number / 10)
            for seen in range(1, output_len // 2):
                arm.token(request, ways[number], seen, number / 10)
            if number % 3 == 0:
                arm.ended(request, ways[number], max(1, output_len // 2) - 1, number / 10)
        ranks.append([(way.prefill_rank, way.decode_rank) for way in ways.values()])
    assert ranks[0] == ranks[1]
    assert set(ranks[0]) == {(1, 1), (2, 2)}


def test_the_dispatch_keeps_the_policy_informed() -> None:
    """Whatever comes of them, requests that have ended are on no rank, and nothing of theirs is under way."""
    made = policy(HybridConfig("move"))
    dispatch = HybridDispatch(made, PoolDispatch(LeastOutstanding(), None))
    for number, num_seen in enumerate((0, 1, 2, 11)):
        request = Request(number, 0, 100, 11)
        way = dispatch.route(request, lambda *roles: (1, 2) if Role.HYBRID in roles else (), 0.0)
        assert (way.prefill_rank, way.decode_rank, way.peer) == (1, 2, 2)
        dispatch.sent(request, way, 0.0)
        for seen in range(1, num_seen + 1):
            dispatch.token(request, way, seen, 0.0)
        assert made._flying[1, 2] == (1 if num_seen < 2 else 0)
        dispatch.ended(request, way, num_seen, 1.0)
        assert made._flying[1, 2] == 0
        assert not any(load.prompts or load.decodes for load in made.loads.values())


def test_what_is_known_beforehand_is_not_reckoned_while_a_request_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(number, 0, 20 + number, 11) for number in range(3)]
    kv_maps = [KvMap(SPEC.vocab_size, 4, 100, ["a"] * 3) for _ in range(2)]
    late, early = (HybridDispatch(policy(), PoolDispatch(KvAware(), None, kv_map)) for kv_map in kv_maps)

    def ways(dispatch: HybridDispatch) -> list[Way]:
        found = []
        for request in requests:
            found.append(dispatch.route(request, lambda *roles: EVERYBODY, 0.0))
            dispatch.sent(request, found[-1], 0.0)
        return found

    expected = ways(late)
    for request in requests:
        early.prepare(request)
    monkeypatch.setattr(hybrid, "prompt_cost", None)
    monkeypatch.setattr(dispatch_module, "block_keys", None)
    assert ways(early) == expected


def test_a_pool_is_loaded_with_what_is_outstanding() -> None:
    dispatch = PoolDispatch(LeastOutstanding(), None)
    big, small = Request(0, 0, 100, 10), Request(1, 0, 10, 10)
    first = dispatch.route(big, lambda *roles: (1, 2), 0.0)
    dispatch.sent(big, first, 0.0)
    assert (first.prefill_rank, first.decode_rank, first.peer) == (1, 1, -1)
    for _ in range(2):
        way = dispatch.route(small, lambda *roles: (1, 2), 0.0)
        assert way.prefill_rank == 2
        dispatch.sent(small, way, 0.0)
    dispatch.token(big, first, 1, 0.0)
    dispatch.ended(big, first, 1, 0.0)
    assert dispatch.route(small, lambda *roles: (1, 2), 0.0).prefill_rank == 1


def test_a_row_tells_the_decision() -> None:
    found = policy().decide(100, 11, EVERYBODY, 0.0, 1)
    row = decision_row(3, 1, Request(7, 0, 100, 11), found)
    assert (row.block, row.request_id, row.attempt, row.moves) == (3, 7, 1, False)
    assert row.stay_s == found.stay.total_s
    stages = row.queue_s + row.prefill_s + row.exposed_transfer_s + row.admission_s + row.decode_s
    assert stages + row.imposed_s == pytest.approx(row.stay_s)


def test_the_hybrid_placement_has_the_instances_of_the_split_one() -> None:
    split = place(PlacementConfig(2, 1), ["a", "a", "a", "b"])
    found = make_hybrid(split)
    assert found.roles == (Role.CLIENT, Role.HYBRID, Role.HYBRID, Role.HYBRID)
    assert [instance.ranks for instance in found.instances] == [instance.ranks for instance in split.instances]
    assert found.leaders(Role.HYBRID) == (1, 2, 3)


def test_a_rank_counts_as_having_at_least_what_is_expected_there() -> None:
    made = policy()
    made._expected[1] = Expected(3.0, 0.5)
    there = made.ways(100, 11, EVERYBODY, 0.0).stay(1)
    assert there.imposed_s == pytest.approx((3 * 14 + 10 * 3) * MS)
    assert there.decode_s == pytest.approx(10 * 2 * (4 + 1 + 3) * MS), "half of the time prompts run instead"
