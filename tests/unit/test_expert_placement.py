"""Experts go where their tokens are, in equal numbers, and no node gets much more than its share."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from xpyd.model.expert_placement import contiguous, cross_node_tokens, place_experts

NODES = ["a", "a", "b", "b"]


def test_each_expert_goes_to_the_node_that_asks_for_it() -> None:
    # Ranks 0 and 1 (node a) ask for odd experts, ranks 2 and 3 (node b) for even ones.
    counts = np.array([[1, 9, 1, 9, 1, 9, 1, 9]] * 2 + [[9, 1, 9, 1, 9, 1, 9, 1]] * 2)
    owners = place_experts(counts, NODES)
    assert [NODES[owner] for owner in owners] == ["b", "a"] * 4
    assert sorted(owners) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cross_node_tokens(counts, NODES, owners) == 8 * 2
    assert cross_node_tokens(counts, NODES, contiguous(8, 4)) == 4 * (2 + 18)


def test_fewest_cross_node_visits_of_all_equal_placements() -> None:
    generator = np.random.default_rng(0)
    for _ in range(5):
        counts = generator.integers(0, 100, (2, 6))
        every = set(permutations((0, 0, 0, 1, 1, 1)))
        best = min(cross_node_tokens(counts, ["a", "b"], owners) for owners in every)
        assert cross_node_tokens(counts, ["a", "b"], place_experts(counts, ["a", "b"], max_load=np.inf)) == best


def test_a_node_that_would_do_all_the_work_is_relieved() -> None:
    """Everybody's favourites are node a's first: without a bound it keeps all four."""
    counts = np.array([[60, 60, 60, 60, 5, 5, 5, 5], [50, 50, 50, 50, 4, 4, 4, 4]])
    visits = counts.sum(0)

    def load(owners: tuple[int, ...]) -> float:
        return float(max(np.bincount(owners, visits)) / visits.sum() * 2)

    unbound, bound = (place_experts(counts, ["a", "b"], limit) for limit in (np.inf, 1.25))
    assert unbound == (0, 0, 0, 0, 1, 1, 1, 1)
    assert load(unbound) > 1.8
    assert load(bound) <= 1.25
    assert sorted(bound) == [0] * 4 + [1] * 4


def test_relief_costs_as_little_as_it_can() -> None:
    """Two hot experts on node a: the one that node b asks for nearly as often leaves."""
    counts = np.array([[50, 90, 1, 0], [49, 9, 9, 10]])
    assert place_experts(counts, ["a", "b"]) in ((1, 0, 0, 1), (1, 0, 1, 0))


def test_one_expert_that_is_too_hot_ends_the_search() -> None:
    counts = np.array([[100, 1], [100, 1]])
    assert sorted(place_experts(counts, ["a", "b"], max_load=1.1)) == [0, 1]


def test_ranks_of_a_node_share_its_work() -> None:
    counts = np.array([[40, 30, 20, 10]] * 2)
    owners = place_experts(counts, ["a", "a"])
    assert owners == (0, 1, 1, 0)


@pytest.mark.parametrize(("num_experts", "num_ranks"), [(8, 4), (6, 4), (6, 3), (7, 2), (4, 4)])
def test_numbers_are_equal_or_as_near_as_they_get(num_experts: int, num_ranks: int) -> None:
    """Three ranks are two on one node and one on another."""
    counts = np.random.default_rng(1).integers(0, 50, (num_ranks, num_experts))
    for owners in (contiguous(num_experts, num_ranks), place_experts(counts, NODES[-num_ranks:])):
        held = np.bincount(owners, minlength=num_ranks)
        assert held.max() - held.min() <= 1
