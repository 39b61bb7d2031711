"""Routers: turns, loads and ties."""

from __future__ import annotations

from typing import get_args, get_type_hints

from xpyd.router import ROUTERS, LeastOutstanding, RoundRobin, RouterConfig


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
