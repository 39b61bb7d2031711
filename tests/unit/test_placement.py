"""Roles from node names: whole nodes for prefill, refusal of shared nodes, refusal of wrong world sizes."""

from __future__ import annotations

import pytest

from xpyd.placement import PlacementConfig, PlacementError, Role, place

P, D, C, CLIENT = Role.PREFILL, Role.DECODE, Role.COLOCATED, Role.CLIENT


def test_each_pool_gets_whole_nodes() -> None:
    placement = place(PlacementConfig(num_prefill=2, num_decode=2), ["a", "a", "b", "b", "c"])
    assert placement.roles == (CLIENT, D, P, P, D)
    assert not placement.shared_node


def test_the_client_may_share_a_node_with_any_worker() -> None:
    assert place(PlacementConfig(num_prefill=1, num_decode=1), ["a", "a", "b"]).roles == (CLIENT, P, D)


def test_two_pools_on_one_node_are_refused() -> None:
    with pytest.raises(PlacementError, match=r"2P1D puts prefill and decode on one node .*allow_shared_node=true"):
        place(PlacementConfig(num_prefill=2, num_decode=1), ["a", "b", "b", "b"])


def test_a_shared_node_is_allowed_when_asked_for_and_reported() -> None:
    placement = place(PlacementConfig(num_prefill=1, num_decode=1, allow_shared_node=True), ["a"] * 3)
    assert placement.roles == (CLIENT, P, D)
    assert placement.shared_node


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_more_or_fewer_ranks_than_needed_are_refused(num_ranks: int) -> None:
    with pytest.raises(PlacementError, match=f"needs 3 ranks .*{num_ranks} were started"):
        place(PlacementConfig(num_prefill=1, num_decode=1, allow_shared_node=True), ["a"] * num_ranks)


def test_the_rival_has_as_many_workers() -> None:
    rival = PlacementConfig(num_prefill=2, num_decode=1, allow_shared_node=True).colocated()
    assert place(rival, ["a"] * 4).roles == (CLIENT, C, C, C)


@pytest.mark.parametrize(
    "wrong", [{"num_prefill": 1}, {"num_decode": 2}, {}, {"num_prefill": 1, "num_decode": 1, "num_colocated": 2}]
)
def test_half_a_placement_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="num_"):
        PlacementConfig(**wrong)
