"""Placement: which rank plays which role on which node. Pure, but for the one function that asks MPI for the nodes.

Rank 0 is the client. Every other rank is a worker. Roles follow nodes: a prefill and a decode worker share a node
only where the configuration says that they may, since a "transfer" inside one node is no transfer. Workers form
instances: one rank each, or as many ranks as configured, on one node where that is possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import combinations
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt

CLIENT_RANK = 0

Width = Literal[1, 2, 4, 8]
Kind = Literal["tp", "pp", "cp", "ep"]
Collectives = Literal["auto", "mpi", "gloo"]  # auto: NCCL for tensors on a GPU, else MPI
Split = Literal["zigzag", "contiguous"]  # of a prompt among context-parallel ranks


class Role(StrEnum):
    CLIENT = "client"
    PREFILL = "prefill"
    DECODE = "decode"
    COLOCATED = "colocated"
    HYBRID = "hybrid"  # prefills and decodes, and hands off both ways


class PlacementError(ValueError):
    """The ranks or nodes that were started do not fit the placement; the message says what would."""


@dataclass(frozen=True)
class Division:
    """How the ranks of an instance share its work.

    Heads and columns (tp), layers (pp), a prompt's tokens (cp), or heads and whole experts (ep).
    """

    kind: Kind = "tp"
    width: int = 1

    @property
    def name(self) -> str:
        return f"({self.kind}{self.width})" if self.width > 1 else ""


@dataclass(frozen=True)
class PlacementConfig:
    """xPyD, or a number of colocated instances.

    An instance has as many ranks as its width: ``prefill_tp``, ``decode_tp`` or ``colocated_tp`` tensor-parallel ones,
    ``prefill_ep``, ``decode_ep`` or ``colocated_ep`` expert-parallel ones, ``prefill_cp`` context-parallel, or
    ``decode_pp`` pipeline stages, which run a step's decodes as ``decode_micro_batches`` groups one behind the other
    (default: one for each stage). ``collectives`` carries what the ranks of an instance exchange in a step.

    A comparison derives its colocated arm itself, on as many worker ranks: instances of ``colocated_tp`` or
    ``colocated_ep`` ranks, by default as the wider end of the hand-off if it is tensor or expert parallel and divides
    them, or else as the narrower, or one rank.
    """

    num_prefill: Annotated[int, Ge(0)] = 0
    num_decode: Annotated[int, Ge(0)] = 0
    num_colocated: Annotated[int, Ge(0)] = 0
    prefill_tp: Width = 1
    decode_tp: Width = 1
    prefill_cp: Width = 1
    decode_pp: Width = 1
    prefill_ep: Width = 1
    decode_ep: Width = 1
    decode_micro_batches: Annotated[int, Gt(0)] | None = None
    colocated_tp: Width | None = None
    colocated_ep: Width | None = None
    collectives: Collectives = "auto"
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
        if self.num_colocated and self.several_ranks:
            raise ValueError(
                f"{self._ends} beside num_colocated={self.num_colocated}: they would be ignored; set colocated_tp or "
                "colocated_ep"
            )
        self._check_kinds()
        width = self.colocated_division.width
        if self.num_workers % width:
            key = f"colocated_{self.colocated_division.kind}"
            raise ValueError(
                f"{key}={width}: {self.num_workers} worker ranks do not divide into instances of {width}, so the arms "
                f"would be unequal; choose a width that divides {self.num_workers}, or leave {key} out"
            )
        if self.collectives != "auto" and self.alone:
            raise ValueError(
                f"collectives={self.collectives} with {self.name}: instances of one rank exchange nothing, so it would "
                "be ignored; leave it out"
            )

    def _check_kinds(self) -> None:
        for role in ("prefill", "decode", "colocated"):
            ways = self._ways(role)
            if len(ways) > 1:
                named = " with ".join(f"{role}_{way.kind}={way.width}" for way in ways)
                raise ValueError(f"{named}: an instance shares work in one way; set one to 1")
        if self.decode_micro_batches is not None and self.decode_pp == 1:
            raise ValueError(
                f"decode_micro_batches={self.decode_micro_batches} with decode_pp=1 would be ignored; set decode_pp "
                "or leave it out"
            )

    @property
    def prefill(self) -> Division:
        """Of every prefill instance."""
        return next(iter(self._ways("prefill")), Division())

    @property
    def decode(self) -> Division:
        """Of every decode instance."""
        return next(iter(self._ways("decode")), Division())

    @property
    def num_workers(self) -> int:
        """Worker ranks."""
        if self.num_colocated:
            return self.num_colocated * self.colocated_division.width
        return self.num_prefill * self.prefill.width + self.num_decode * self.decode.width

    @property
    def world_size(self) -> int:
        """MPI ranks needed: the client and the workers."""
        return 1 + self.num_workers

    @property
    def divisions(self) -> set[Division]:
        """Those of all instances, the rival's too."""
        return {self.prefill, self.decode, self.colocated_division}

    @property
    def widths(self) -> str:
        """The widths of the two ends of a hand-off, or of the colocated instances, by their keys, for messages."""
        if self.num_colocated:
            return f"colocated_{self.colocated_division.kind}={self.colocated_division.width}"
        return self._ends

    @property
    def _ends(self) -> str:
        prefill, decode = self.prefill, self.decode
        return f"prefill_{prefill.kind}={prefill.width}, decode_{decode.kind}={decode.width}"

    @property
    def alone(self) -> bool:
        """Whether every instance is one rank, the rival's too."""
        return all(division.width == 1 for division in self.divisions)

    @property
    def several_ranks(self) -> bool:
        """Whether a hand-off is between instances of which one at least has several ranks."""
        return max(self.prefill.width, self.decode.width) > 1

    @property
    def name(self) -> str:
        if self.num_colocated:
            return f"{self.num_colocated}C{self.colocated_division.name}"
        return f"{self.num_prefill}P{self.prefill.name}{self.num_decode}D{self.decode.name}"

    def colocated(self) -> PlacementConfig:
        """The rival on equal resources: as many worker ranks, in colocated instances."""
        way = self.colocated_division
        widths: dict[str, Any] = {f"colocated_{way.kind}": way.width}
        return PlacementConfig(
            num_colocated=self.num_workers // way.width,
            **widths,
            collectives=self.collectives if way.width > 1 else "auto",
            allow_shared_node=self.allow_shared_node,
            pin_cores=self.pin_cores,
        )

    @property
    def colocated_division(self) -> Division:
        """Of every colocated instance, the rival's where there are none."""
        asked = self._ways("colocated")
        if asked or self.num_colocated or (self.colocated_tp, self.colocated_ep) != (None, None):
            return asked[0] if asked else Division()
        ends = sorted((self.prefill, self.decode), key=lambda end: -end.width)
        fits = (end for end in ends if end.kind in ("tp", "ep") and self.num_workers % end.width == 0)
        return next(fits, Division())

    def _ways(self, role: str) -> list[Division]:
        """How instances of a role are asked to divide their work; one at most, see ``_check_kinds``."""
        asked = ((kind, getattr(self, f"{role}_{kind}", None)) for kind in get_args(Kind))
        return [Division(kind, width) for kind, width in asked if width is not None and width > 1]


@dataclass(frozen=True)
class Instance:
    """The ranks that hold one model together. The leader schedules and talks; followers run the same steps."""

    role: Role
    ranks: tuple[int, ...]
    kind: Kind = "tp"

    @property
    def leader(self) -> int:
        return self.ranks[0]

    @property
    def width(self) -> int:
        return len(self.ranks)

    @property
    def division(self) -> Division:
        return Division(self.kind, self.width)


@dataclass(frozen=True)
class Placement:
    """Role and node of every rank, and the instances that the workers form."""

    roles: tuple[Role, ...]
    nodes: tuple[str, ...]
    instances: tuple[Instance, ...]

    def ranks(self, *roles: Role) -> tuple[int, ...]:
        return tuple(rank for rank, role in enumerate(self.roles) if role in roles)

    def leaders(self, *roles: Role) -> tuple[int, ...]:
        """The leader of every instance of these roles: the ranks that the client talks to."""
        return tuple(instance.leader for instance in self.instances if instance.role in roles)

    def instance_of(self, rank: int) -> Instance:
        """The instance of a worker rank."""
        return next(instance for instance in self.instances if rank in instance.ranks)

    @property
    def shared_node(self) -> bool:
        """True where a prefill and a decode worker share a node."""
        prefill = {self.nodes[rank] for rank in self.ranks(Role.PREFILL)}
        return any(self.nodes[rank] in prefill for rank in self.ranks(Role.DECODE))

    def describe(self) -> str:
        """Every rank with role and node; ranks of one instance together."""
        found = [f"rank {CLIENT_RANK}: {Role.CLIENT} on {self.nodes[CLIENT_RANK]}"]
        for instance in self.instances:
            ranks = "+".join(str(rank) for rank in instance.ranks)
            nodes = dict.fromkeys(self.nodes[rank] for rank in instance.ranks)
            found.append(f"rank{'s' * (instance.width > 1)} {ranks}: {instance.role} on {' and '.join(nodes)}")
        return ", ".join(found)


def make_hybrid(split: Placement) -> Placement:
    """The same instances of a prefill and a decode pool, each in the role that is both."""
    roles = tuple(role if role is Role.CLIENT else Role.HYBRID for role in split.roles)
    return replace(split, roles=roles, instances=tuple(replace(i, role=Role.HYBRID) for i in split.instances))


def place(config: PlacementConfig, nodes: Sequence[str]) -> Placement:
    """Give each rank its role, from the node name of each rank (``nodes[rank]``).

    Prefill takes whole nodes, the earliest that add up to its ranks. Raises PlacementError for a wrong world size, and
    where prefill and decode would share a node without ``allow_shared_node``.
    """
    if len(nodes) != config.world_size:
        raise PlacementError(
            f"placement {config.name} needs {config.world_size} ranks (1 client + {config.num_workers} workers), "
            f"{len(nodes)} were started; start {config.world_size} (with a worker on each node: "
            f"{config.num_workers} nodes), or change placement.num_prefill/num_decode/"
            "num_colocated or their widths (prefill_tp, prefill_cp, prefill_ep, decode_tp, decode_pp, decode_ep, "
            "colocated_tp, colocated_ep)"
        )
    workers = set(range(1, len(nodes)))
    if config.num_colocated:
        return _placement(nodes, _instances(Role.COLOCATED, workers, config.colocated_division, nodes))
    prefill = _prefill_ranks(config.num_prefill * config.prefill.width, nodes)
    placement = _placement(
        nodes,
        _instances(Role.PREFILL, prefill, config.prefill, nodes)
        + _instances(Role.DECODE, workers - prefill, config.decode, nodes),
    )
    if placement.shared_node and not config.allow_shared_node:
        raise PlacementError(
            f"placement {config.name} puts prefill and decode on one node ({_layout(nodes)}); start the workers on "
            "nodes that split into the two pools, or set placement.allow_shared_node=true (tables are then labelled)"
        )
    return placement


def _prefill_ranks(num_ranks: int, nodes: Sequence[str]) -> set[int]:
    """Whole nodes whose workers number exactly ``num_ranks``, earliest first; else simply the first ranks."""
    by_node = _by_node(range(1, len(nodes)), nodes)
    for count in range(1, min(len(by_node), num_ranks) + 1):
        for chosen in combinations(by_node.values(), count):
            ranks = {rank for group in chosen for rank in group}
            if len(ranks) == num_ranks:
                return ranks
    return set(range(1, 1 + num_ranks))


def _instances(role: Role, ranks: set[int], division: Division, nodes: Sequence[str]) -> list[Instance]:
    """Groups of ranks: inside nodes first, neighbours together; what is left over is joined across nodes."""
    width = division.width
    groups: list[tuple[int, ...]] = []
    left: list[int] = []
    for members in _by_node(sorted(ranks), nodes).values():
        num_whole = len(members) // width * width
        groups += [tuple(members[i : i + width]) for i in range(0, num_whole, width)]
        left += members[num_whole:]
    groups += [tuple(left[i : i + width]) for i in range(0, len(left), width)]
    return [Instance(role, group, division.kind) for group in sorted(groups)]


def _by_node(ranks: Iterable[int], nodes: Sequence[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for rank in ranks:
        found.setdefault(nodes[rank], []).append(rank)
    return found


def _placement(nodes: Sequence[str], instances: list[Instance]) -> Placement:
    roles = {rank: instance.role for instance in instances for rank in instance.ranks}
    return Placement((Role.CLIENT, *(roles[rank] for rank in sorted(roles))), tuple(nodes), tuple(instances))


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
