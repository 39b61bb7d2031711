"""Routers: turns, loads and ties."""

from __future__ import annotations

from typing import get_args, get_type_hints

from xpyd.dispatch import KvMap, PoolDispatch
from xpyd.request import Request
from xpyd.router import ROUTERS, KvAware, LeastOutstanding, RoundRobin, RouterConfig, SentBlocks


def test_round_robin_takes_turns_whatever_the_load() -> None:
    router = RoundRobin()
    assert [router.route([100, 0, 0]) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_least_outstanding_follows_the_load() -> None:
    router = LeastOutstanding()
    assert router.route([300, 20, 100]) == 1
    assert router.route([300, 20, 100]) == 1  # still the least, even after its turn
    assert router.route([0, 20, 100]) == 0


def test_equal_loads_take_turns() -> None:
    router = LeastOutstanding()
    assert [router.route([0, 0, 0]) for _ in range(4)] == [0, 1, 2, 0]
    assert router.route([5, 9, 5]) == 2  # 1 is next but loaded; 2 comes before 0 in turn


def test_least_outstanding_balances_tokens_not_requests() -> None:
    router = LeastOutstanding()
    loads = [0, 0]
    for tokens in (1000, 100, 100, 100):
        loads[router.route(loads)] += tokens
    assert loads == [1000, 300]


def test_each_pool_gets_its_own_router() -> None:
    config = RouterConfig("round_robin")
    prefill, decode = config.build(), config.build()
    assert prefill.route([0, 0]) == 0
    assert decode.route([0, 0, 0]) == 0
    assert prefill.route([0, 0]) == 1


def test_every_policy_is_registered() -> None:
    assert set(ROUTERS) == set(get_args(get_type_hints(RouterConfig)["policy"]))
    assert isinstance(RouterConfig().build(), LeastOutstanding)


def test_kv_aware_goes_where_the_beginning_is_unless_the_queue_is_longer() -> None:
    router = KvAware()
    assert router.route([100, 0], [50, 500]) == 0
    assert router.route([600, 0], [50, 500]) == 1
    assert [router.route([0, 0], [7, 7]) for _ in range(3)] == [0, 1, 0], "equals take turns"


def test_blocks_that_were_sent_are_found_until_they_are_pushed_out() -> None:
    known = SentBlocks(3)
    known.sent(1, [b"a", b"b"])
    assert (known.num_hits(1, [b"a", b"b", b"c"]), known.num_hits(2, [b"a"])) == (2, 0)
    assert known.num_hits(1, [b"x", b"b"]) == 0, "only leading blocks can be used"
    known.sent(1, [b"a", b"d"])
    assert known.num_hits(1, [b"a", b"b"]) == 2
    known.sent(1, [b"e"])
    assert (known.num_hits(1, [b"a", b"b"]), known.num_hits(1, [b"a", b"d"])) == (1, 2), "b was the oldest"
    small = SentBlocks(2)
    small.sent(1, [b"a", b"b", b"c"])
    assert small.num_hits(1, [b"a", b"b", b"c"]) == 2, "leaves go first: nothing is found behind a gap"


def test_a_map_counts_what_is_missing_by_rank_and_by_link() -> None:
    """Two requests share 40 of 50 tokens, in blocks of 16: two whole blocks."""
    first, second = (Request(i, 0, 50, 4, seed=i, prefix_len=40, prefix_seed=9) for i in range(2))
    found = KvMap(1000, 16, 100, ["a", "a", "b"])
    assert found.to_compute(first, [1, 2]) == [50, 50]
    found.sent(first, [1])
    assert found.to_compute(second, [1, 2]) == [18, 50]
    assert found.to_move(second, 0, [1, 2]) == [0, 50], "rank 1 shares the source's node"
    assert found.to_move(second, 2, [1, 2]) == [18, 0]


def test_a_kv_aware_pool_sends_a_beginning_where_it_was_sent_before() -> None:
    dispatch = PoolDispatch(KvAware(), None, KvMap(1000, 16, 100, ["a"] * 3))
    ranks = []
    for number, seed in enumerate([9, 8, 9, 8, 9]):
        request = Request(number, 0, 100, 2, seed=number, prefix_len=96, prefix_seed=seed)
        way = dispatch.route(request, lambda *roles: (1, 2), 0.0)
        dispatch.sent(request, way, 0.0)
        dispatch.ended(request, way, 0, 0.0)
        ranks.append(way.prefill_rank)
    assert ranks == [1, 2, 1, 2, 1]


def test_a_queue_of_cached_prompts_is_a_short_one() -> None:
    """Rank 1 has the beginning, and three requests that share it wait there: 12 tokens, not 300."""
    dispatch = PoolDispatch(KvAware(), None, KvMap(1000, 16, 100, ["a"] * 3))
    ways = []
    for number in range(4):
        request = Request(number, 0, 100, 2, seed=number, prefix_len=96, prefix_seed=9)
        ways.append(dispatch.route(request, lambda *roles: (1, 2), 0.0))
        dispatch.sent(request, ways[-1], 0.0)
    assert [way.prefill_rank for way in ways] == [1, 2, 1, 2], "100 tokens wait at 1: as many as 2 would compute"
    dispatch.token(Request(0, 0, 100, 2), ways[0], 1, 0.0)
    dispatch.token(Request(1, 0, 100, 2), ways[1], 1, 0.0)
    assert dispatch._load == {1: 1 + 4 + 2, 2: 1 + 4 + 2}
