"""Placement: which rank plays which role on which node. Pure, but for the one function that asks MPI for the nodes.

Rank 0 is the client. Every other rank is a worker. Roles follow nodes: a prefill and a decode worker share a node
only where the configuration says that they may, since a "transfer" inside one node is no transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Annotated, Any

from annotated_types import Ge

CLIENT_RANK = 0


class Role(StrEnum):
    CLIENT = "client"
    PREFILL = "prefill"
    DECODE = "decode"
    COLOCATED = "colocated"


class PlacementError(ValueError):
    """The ranks or nodes that were started do not fit the placement; the message says what would."""


@dataclass(frozen=True)
class PlacementConfig:
    """xPyD, or a number of colocated workers; a comparison derives its colocated arm (x + y workers) itself."""

    num_prefill: Annotated[int, Ge(0)] = 0
    num_decode: Annotated[int, Ge(0)] = 0
    num_colocated: Annotated[int, Ge(0)] = 0
    allow_shared_node: bool = False
    pin_cores: bool = True

    def __post_init__(self) -> None:
        split = (self.num_prefill, self.num_decode)
        if self.num_colocated and any(split):
            raise ValueError(
                f"num_colocated={self.num_colocated} beside num_prefill={self.num_prefill}, "
                f"num_decode={self.num_decode}: give either xPyD or colocated workers"
            )
        if not self.num_colocated and not all(split):
            raise ValueError(
                f"num_prefill={self.num_prefill}, num_decode={self.num_decode}: both must be at least 1, "
                "or set num_colocated alone"
            )

    @property
    def num_workers(self) -> int:
        return self.num_colocated or self.num_prefill + self.num_decode

    @property
    def world_size(self) -> int:
        """MPI ranks needed: the client and the workers."""
        return 1 + self.num_workers

    @property
    def name(self) -> str:
        if self.num_colocated:
            return f"{self.num_colocated}C"
        return f"{self.num_prefill}P{self.num_decode}D"

    def colocated(self) -> PlacementConfig:
        """The rival on equal resources: as many colocated workers."""
        return PlacementConfig(
            num_colocated=self.num_workers, allow_shared_node=self.allow_shared_node, pin_cores=self.pin_cores
        )


@dataclass(frozen=True)
class Placement:
    """Role and node of every rank."""

    roles: tuple[Role, ...]
    nodes: tuple[str, ...]

    def ranks(self, *roles: Role) -> tuple[int, ...]:
        return tuple(rank for rank, role in enumerate(self.roles) if role in roles)

    @property
    def shared_node(self) -> bool:
        """True where a prefill and a decode worker share a node."""
        prefill = {self.nodes[rank] for rank in self.ranks(Role.PREFILL)}
        return any(self.nodes[rank] in prefill for rank in self.ranks(Role.DECODE))

    def describe(self) -> str:
        return ", ".join(
            f"rank {r}: {role} on {node}" for r, (role, node) in enumerate(zip(self.roles, self.nodes, strict=True))
        )


def place(config: PlacementConfig, nodes: Sequence[str]) -> Placement:
    """Give each rank its role, from the node name of each rank (``nodes[rank]``).

    Prefill takes whole nodes, the earliest that add up to ``num_prefill`` workers. Raises PlacementError for a wrong
    world size, and where prefill and decode would share a node without ``allow_shared_node``.
    """
    if len(nodes) != config.world_size:
        raise PlacementError(
            f"placement {config.name} needs {config.world_size} ranks (1 client + {config.num_workers} workers), "
            f"{len(nodes)} were started; start {config.world_size}, or change placement.num_prefill/num_decode/"
            "num_colocated"
        )
    workers = range(1, len(nodes))
    if config.num_colocated:
        return _placement(nodes, dict.fromkeys(workers, Role.COLOCATED))
    prefill = _prefill_ranks(config, nodes)
    roles = {rank: Role.PREFILL if rank in prefill else Role.DECODE for rank in workers}
    placement = _placement(nodes, roles)
    if placement.shared_node and not config.allow_shared_node:
        raise PlacementError(
            f"placement {config.name} puts prefill and decode on one node ({_layout(nodes)}); start the workers on "
            "nodes that split into the two pools, or set placement.allow_shared_node=true (tables are then labelled)"
        )
    return placement


def _prefill_ranks(config: PlacementConfig, nodes: Sequence[str]) -> set[int]:
    """Whole nodes whose workers number exactly ``num_prefill``, earliest first; else simply the first ranks."""
    by_node: dict[str, list[int]] = {}
    for rank in range(1, len(nodes)):
        by_node.setdefault(nodes[rank], []).append(rank)
    names = list(by_node)
    for count in range(1, min(len(names), config.num_prefill) + 1):
        for chosen in combinations(names, count):
            ranks = [rank for name in chosen for rank in by_node[name]]
            if len(ranks) == config.num_prefill:
                return set(ranks)
    return set(range(1, 1 + config.num_prefill))


def _placement(nodes: Sequence[str], roles: dict[int, Role]) -> Placement:
    return Placement((Role.CLIENT, *(roles[rank] for rank in sorted(roles))), tuple(nodes))


def _layout(nodes: Sequence[str]) -> str:
    return ", ".join(
        f"{node}: worker ranks {[r for r in range(1, len(nodes)) if nodes[r] == node]}" for node in dict.fromkeys(nodes)
    )


def node_names(comm: Any) -> list[str]:
    """The node of every rank of ``comm``, by MPI's shared-memory split; ranks on one node get one name.

    Two nodes that claim the same host name stay apart (``name``, ``name#4``): the split decides, not the name.
    """
    from xpyd.mpi import MPI

    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    leader = local.bcast(comm.rank)
    local.Free()
    pairs = comm.allgather((leader, MPI.Get_processor_name()))
    names: dict[int, str] = {}
    for leader, name in pairs:
        if leader not in names:
            names[leader] = f"{name}#{leader}" if name in names.values() else name
    return [names[leader] for leader, _ in pairs]
