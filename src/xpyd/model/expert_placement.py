"""Which rank of an instance holds which expert, so that few tokens leave their node. Pure: counts in, a map out.

Every rank holds as many experts as any other (or one fewer), and no node is to work much more than its share. Inside
these bounds experts go to the node whose tokens ask for them most.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_LOAD = 1.25  # of a node's even share of the tokens


def contiguous(num_experts: int, num_ranks: int) -> tuple[int, ...]:
    """Neighbouring experts together: the rank of every expert, whatever its tokens are. The baseline."""
    return tuple(expert * num_ranks // num_experts for expert in range(num_experts))


def cross_node_tokens(counts: NDArray[np.int64], nodes: Sequence[str], owners: Sequence[int]) -> int:
    """Visits of experts on another node than the token's: ``counts`` [num_ranks, num_experts], ``nodes`` by rank.

    An upper bound of the tokens sent: one that visits two experts of a rank is sent there once.
    """
    away = np.array([[nodes[rank] != nodes[owner] for owner in owners] for rank in range(len(nodes))])
    return int(counts[away].sum())


def place_experts(counts: NDArray[np.int64], nodes: Sequence[str], max_load: float = MAX_LOAD) -> tuple[int, ...]:
    """The rank of every expert, from how often each rank's tokens asked for it: ``counts`` [num_ranks, num_experts].

    First the fewest cross-node visits with equal numbers of experts, as an assignment problem (Kuhn 1955). Then, where
    a node would get more than ``max_load`` times its share of the visits, experts are swapped, the cheapest first,
    until none does or no swap helps. Inside a node, the busiest expert goes to the least busy rank that has room.
    """
    from scipy.optimize import linear_sum_assignment  # half a second of every rank's start, if it stood above

    num_ranks, num_experts = counts.shape
    room = np.diff([rank * num_experts // num_ranks for rank in range(num_ranks + 1)])  # experts of each rank
    names = list(dict.fromkeys(nodes))
    ranks_of = [[rank for rank in range(num_ranks) if nodes[rank] == name] for name in names]
    at_home = np.stack([counts[ranks].sum(0) for ranks in ranks_of], axis=1)  # [num_experts, num_nodes]
    slots = np.repeat(np.arange(len(names)), [room[ranks].sum() for ranks in ranks_of])
    experts, chosen = linear_sum_assignment(at_home[:, slots], maximize=True)
    node_of = np.empty(num_experts, np.int64)
    node_of[experts] = slots[chosen]
    share = np.array([len(ranks) / num_ranks for ranks in ranks_of])
    _relieve(node_of, at_home, counts.sum(0), share, max_load)
    owners = np.empty(num_experts, np.int64)
    for node, ranks in enumerate(ranks_of):
        _spread(np.flatnonzero(node_of == node), ranks, room, counts.sum(0), owners)
    return tuple(int(owner) for owner in owners)


def _relieve(
    node_of: NDArray[np.int64],
    at_home: NDArray[np.int64],
    visits: NDArray[np.int64],
    share: NDArray[np.float64],
    max_load: float,
) -> None:
    """Swap experts of the busiest node for less busy ones of others; each swap makes the busiest less busy."""
    while True:
        load = np.bincount(node_of, visits, len(share)) / (share * max(1, visits.sum()))
        busiest = int(load.argmax())
        if load[busiest] <= max_load:
            return
        best: tuple[float, int, int] | None = None
        for out in np.flatnonzero(node_of == busiest):
            for into in np.flatnonzero(node_of != busiest):
                moved, node = visits[out] - visits[into], node_of[into]
                if moved <= 0 or load[node] + moved / (share[node] * visits.sum()) >= load[busiest]:
                    continue
                lost = at_home[out, busiest] + at_home[into, node] - at_home[out, node] - at_home[into, busiest]
                if best is None or lost / moved < best[0]:
                    best = float(lost / moved), int(out), int(into)
        if best is None:
            return
        swapped = list(best[1:])
        node_of[swapped] = node_of[swapped[::-1]]


def _spread(
    experts: NDArray[np.int64],
    ranks: Sequence[int],
    room: NDArray[np.int64],
    visits: NDArray[np.int64],
    owners: NDArray[np.int64],
) -> None:
    """Longest processing time first (Graham 1969), with room for so many experts on each rank."""
    load, left = dict.fromkeys(ranks, 0), {rank: int(room[rank]) for rank in ranks}
    for expert in sorted(experts, key=lambda expert: (-visits[expert], expert)):
        owners[expert] = rank = min((rank for rank in ranks if left[rank]), key=lambda rank: (load[rank], rank))
        load[rank] += int(visits[expert])
        left[rank] -= 1
