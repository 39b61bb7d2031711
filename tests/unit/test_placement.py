"""Roles from node names: whole nodes for prefill, refusal of shared nodes, refusal of wrong world sizes."""

from __future__ import annotations

from typing import Any

import pytest

from xpyd.placement import Division, Placement, PlacementConfig, PlacementError, Role, Width, place

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
    assert placement.describe() == "rank 0: client on a, rank 1: prefill on a, rank 2: decode on a"


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


def groups(placement: Placement, role: Role) -> list[tuple[int, ...]]:
    return [instance.ranks for instance in placement.instances if instance.role is role]


def test_ranks_of_an_instance_are_neighbours_on_one_node() -> None:
    config = PlacementConfig(num_prefill=2, num_decode=1, prefill_tp=2, decode_tp=4)
    assert (config.world_size, config.name) == (9, "2P(tp2)1D(tp4)")
    placement = place(config, ["a", *"aaaa", *"bbbb"])
    assert groups(placement, P) == [(1, 2), (3, 4)]
    assert groups(placement, D) == [(5, 6, 7, 8)]
    assert placement.leaders(P, D) == (1, 3, 5)
    assert placement.instance_of(6).leader == 5
    assert "ranks 5+6+7+8: decode on b" in placement.describe()


def test_one_node_matters_more_than_neighbouring_ranks() -> None:
    placement = place(PlacementConfig(num_prefill=1, num_decode=2, prefill_tp=2, decode_tp=2), list("xabcabca"[:7]))
    assert groups(placement, P) == [(1, 4)]
    assert groups(placement, D) == [(2, 5), (3, 6)]


def test_stages_form_an_instance_as_tensor_parallel_ranks_do() -> None:
    config = PlacementConfig(num_prefill=2, num_decode=1, decode_pp=4)
    assert (config.world_size, config.name, config.several_ranks) == (7, "2P1D(pp4)", True)
    placement = place(config, ["a", *"aa", *"bbbb"])
    assert groups(placement, D) == [(3, 4, 5, 6)]
    assert placement.instance_of(5).division == Division("pp", 4)
    assert placement.instance_of(1).division == Division("tp", 1)
    assert config.colocated().name == "6C", "the rival's instances are of one rank where none is asked for"


def test_an_instance_spans_nodes_only_where_it_must() -> None:
    placement = place(PlacementConfig(num_colocated=3, colocated_tp=2), list("xaaabbb"))
    assert groups(placement, C) == [(1, 2), (3, 6), (4, 5)]
    assert "ranks 3+6: colocated on a and b" in placement.describe()


@pytest.mark.parametrize(
    ("split", "widths", "chosen", "rival"),
    [
        ((1, 1), (1, 1), None, (2, 1)),
        ((2, 1), (2, 2), None, (3, 2)),
        ((2, 1), (2, 4), None, (2, 4)),  # the wider one divides 8 ranks
        ((1, 1), (2, 1), None, (3, 1)),  # 3 ranks: only the narrower one does
        ((2, 1), (2, 4), 1, (8, 1)),
    ],
)
def test_the_rival_has_as_many_ranks(
    split: tuple[int, int], widths: tuple[Width, Width], chosen: Width | None, rival: tuple[int, int]
) -> None:
    config = PlacementConfig(
        num_prefill=split[0], num_decode=split[1], prefill_tp=widths[0], decode_tp=widths[1], colocated_tp=chosen
    )
    found = config.colocated()
    assert (found.num_colocated, found.colocated_tp) == rival
    assert found.world_size == config.world_size


def test_the_rival_spreads_its_experts_as_the_wider_end_does() -> None:
    ends: dict[str, Any] = {"num_prefill": 1, "num_decode": 1, "allow_shared_node": True}
    assert PlacementConfig(**ends, prefill_tp=2, decode_ep=2).colocated().name == "2C(tp2)"
    assert PlacementConfig(**ends, prefill_ep=4, decode_ep=4).colocated().name == "2C(ep4)"
    asked = PlacementConfig(**ends, prefill_tp=2, decode_tp=2, colocated_ep=4)
    assert (asked.name, asked.colocated().name) == ("1P(tp2)1D(tp2)", "1C(ep4)")
    rival = place(asked.colocated(), list("xaaaa"))
    assert rival.instance_of(3).division == Division("ep", 4)
    with pytest.raises(ValueError, match=r"colocated_ep=4: 6 worker ranks .* or leave colocated_ep out"):
        PlacementConfig(num_prefill=2, num_decode=1, prefill_tp=2, decode_tp=2, colocated_ep=4)


def test_a_rival_of_fewer_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"colocated_tp=4: 6 worker ranks .* choose a width that divides 6"):
        PlacementConfig(num_prefill=2, num_decode=1, prefill_tp=2, decode_tp=2, colocated_tp=4)


def test_widths_that_would_be_ignored_are_refused() -> None:
    with pytest.raises(ValueError, match=r"collectives=gloo with 2C: .*leave it out"):
        PlacementConfig(num_colocated=2, collectives="gloo")
    with pytest.raises(ValueError, match=r"decode_tp=2 beside num_colocated=2: .* set colocated_tp"):
        PlacementConfig(num_colocated=2, decode_tp=2)
    with pytest.raises(ValueError, match=r"decode_pp=2 beside num_colocated=2: .* set colocated_tp"):
        PlacementConfig(num_colocated=2, decode_pp=2)
