"""Judges memory: room for the KV pools, the limit of locked memory, /dev/shm, swap, hugepages. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xpyd.placement import CLIENT_RANK
from xpyd.preflight.facts import NodeFacts, RankFacts
from xpyd.preflight.finding import Finding, Level, Topic, told
from xpyd.units import MIB, format_bytes

SHM_PER_RANK_BYTES = 64 * MIB  # Open MPI's and UCX's segments, with room; Docker's default for a whole node is as much

Problem = tuple[str, Level, str, str]  # check, level, what was found, remedy: the same on several nodes is said once


def judge_memory(
    nodes: Mapping[str, NodeFacts], ranks: Sequence[RankFacts], pool_bytes: int, wants_infiniband: bool
) -> list[Finding]:
    """``pool_bytes``: the KV pool of one worker."""
    grouped: dict[Problem, list[str]] = {}
    for name, node in nodes.items():
        here = [rank for rank in ranks if rank.node == name]
        num_workers = sum(rank.rank != CLIENT_RANK for rank in here)
        for problem in (
            *_room(node, num_workers * pool_bytes),
            *_memlock(node, pool_bytes, wants_infiniband),
            *_shm(node, len(here)),
            *_swap(node),
        ):
            grouped.setdefault(problem, []).append(name)
    found = [
        Finding(Topic.MEMORY, f"{check} on {', '.join(names)}", level, text, remedy)
        for (check, level, text, remedy), names in grouped.items()
    ]
    if not found:
        room = told({name: _memory(node, pool_bytes) for name, node in nodes.items()})
        found = [Finding(Topic.MEMORY, "room for the pools", Level.OK, room)]
    return [*found, Finding(Topic.MEMORY, "hugepages", Level.OK, told({n: _hugepages(f) for n, f in nodes.items()}))]


def _room(node: NodeFacts, pools_bytes: int) -> list[Problem]:
    limits = {"available": node.available_bytes, "left to commit": node.commit_left_bytes}
    return [
        (
            "room for the pools",
            Level.ERROR,
            f"the KV pools of a node's workers take {format_bytes(pools_bytes)}, {format_bytes(limit)} are {what}",
            "lower scheduler.num_kv_blocks, start fewer workers on a node, or ask Slurm for memory (--mem)",
        )
        for what, limit in limits.items()
        if limit is not None and pools_bytes > limit
    ]


def _memlock(node: NodeFacts, pool_bytes: int, wants_infiniband: bool) -> list[Problem]:
    """InfiniBand registers the pool by locking it; without InfiniBand the limit is of no concern."""
    matters = wants_infiniband or bool(node.active_infiniband)
    if node.memlock_bytes is None or node.memlock_bytes >= pool_bytes or not matters:
        return []
    text = (
        f"locked memory is limited to {format_bytes(node.memlock_bytes)}, a KV pool takes {format_bytes(pool_bytes)}: "
        "InfiniBand cannot register it"
    )
    remedy = "ulimit -l unlimited: LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK"
    return [("memlock", Level.ERROR if wants_infiniband else Level.WARNING, text, remedy)]


def _shm(node: NodeFacts, num_ranks: int) -> list[Problem]:
    if node.shm_free_bytes >= num_ranks * SHM_PER_RANK_BYTES:
        return []
    text = (
        f"{format_bytes(node.shm_free_bytes)} free for {num_ranks} ranks: MPI and UCX keep segments there, and a rank "
        "that finds no room dies of SIGBUS"
    )
    return [("/dev/shm", Level.WARNING, text, "docker or podman: --shm-size=1g; else clear what old jobs left there")]


def _swap(node: NodeFacts) -> list[Problem]:
    if not node.swap_used_bytes:
        return []
    text = f"{format_bytes(node.swap_used_bytes)} are swapped out: a page that must come back costs more than a token"
    return [("swap", Level.WARNING, text, "swapoff -a, or a node that nobody else uses (--exclusive)")]


def _memory(node: NodeFacts, pool_bytes: int) -> str:
    limit = "unlimited" if node.memlock_bytes is None else format_bytes(node.memlock_bytes)
    return (
        f"pool {format_bytes(pool_bytes)} a worker, {format_bytes(node.available_bytes)} available, memlock {limit}, "
        f"/dev/shm {format_bytes(node.shm_free_bytes)} free"
    )


def _hugepages(node: NodeFacts) -> str:
    reserved = f"{node.num_hugepages} x {format_bytes(node.hugepage_bytes)}" if node.num_hugepages else "none"
    return f"reserved: {reserved}; transparent: {node.transparent_hugepages}"
