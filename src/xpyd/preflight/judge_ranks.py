"""Judges who runs where: roles, the MPI library, clocks. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from xpyd.placement import Placement, Role
from xpyd.preflight.facts import RankFacts
from xpyd.preflight.finding import Finding, Level, Topic, by_value, told
from xpyd.units import NS_PER_S, format_s


def judge_placement(placement: Placement, name: str, refusal: str) -> list[Finding]:
    """``refusal``: what placement refuses, empty where nothing."""
    if refusal:
        return [Finding(Topic.PLACEMENT, "roles", Level.ERROR, *split_remedy(refusal))]
    nodes = list(dict.fromkeys(placement.nodes))
    found = f"{name}: {len(placement.roles)} ranks on {len(nodes)} node{'s' * (len(nodes) > 1)}"
    if not placement.ranks(Role.PREFILL):
        return [Finding(Topic.PLACEMENT, "roles", Level.OK, f"{found}; colocated, no KV pairs to check")]
    if placement.shared_node:
        return [
            Finding(
                Topic.PLACEMENT,
                "roles",
                Level.WARNING,
                f"{found}; a prefill and a decode worker share a node, so that no wire is crossed",
                "start the workers on nodes of their own; tables of such a run are labelled",
            )
        ]
    return [Finding(Topic.PLACEMENT, "roles", Level.OK, f"{found}; no prefill and decode worker share a node")]


def judge_mpi(ranks: Sequence[RankFacts]) -> list[Finding]:
    """One library and one ABI on all ranks."""
    return [
        _same("library", {str(rank.rank): rank.mpi for rank in ranks}),
        _same("ABI", {str(rank.rank): rank.mpi_abi for rank in ranks}),
    ]


def judge_silence(silent: Sequence[tuple[int, int]], timeout_s: float) -> Finding:
    """Ranks that do not hear each other over MPI; ``silent``: (rank, the peer that it did not hear), not empty."""
    pairs = sorted({(min(pair), max(pair)) for pair in silent})
    return Finding(
        Topic.MPI,
        "reach",
        Level.ERROR,
        f"ranks {', '.join(f'{a} and {b}' for a, b in pairs)} did not hear each other over MPI within "
        f"{timeout_s:.4g} s",
        "a firewall between these nodes, or an interface that they do not share: name the right one "
        "(Open MPI: OMPI_MCA_btl_tcp_if_include=eth0; MPICH: MPICH_NETMASK, HYDRA_IFACE)",
    )


def judge_clocks(ranks: Sequence[RankFacts], max_error_s: float) -> list[Finding]:
    """One finding for all ranks within the bound, one for each beyond it."""
    good = [rank for rank in ranks if rank.clock_error_ns <= max_error_s * NS_PER_S]
    found = []
    if good:
        text = ", ".join(f"rank {rank.rank} {_offset(rank)}" for rank in good)
        found.append(Finding(Topic.CLOCK, "offset to rank 0", Level.OK, text))
    found += [
        Finding(
            Topic.CLOCK,
            f"offset of rank {rank.rank}",
            Level.WARNING,
            f"{_offset(rank)} on {rank.node}: more than check.max_clock_error_s={max_error_s:.4g}",
            "latencies across nodes are no better known than this: look for busy cores, more ranks than cores, or a "
            "slow path to rank 0",
        )
        for rank in ranks
        if rank not in good
    ]
    return found


def split_remedy(message: str, otherwise: str = "") -> tuple[str, str]:
    """An error message as (what is wrong, what to do): ours say the remedy after the last semicolon.

    ``otherwise``: what to do where the message does not say.
    """
    wrong, _, remedy = message.rpartition("; ")
    if wrong and wrong.count("(") == wrong.count(")"):
        return wrong, remedy
    return message, otherwise


def _offset(rank: RankFacts) -> str:
    if rank.clock_offset_ns == rank.clock_error_ns == 0:
        return "0 (one clock)"
    return f"{format_s(rank.clock_offset_ns / NS_PER_S)} ± {format_s(rank.clock_error_ns / NS_PER_S)}"


def _same(check: str, values: dict[str, str]) -> Finding:
    groups = by_value(values)
    if len(groups) == 1:
        return Finding(Topic.MPI, check, Level.OK, f"{next(iter(groups))} on all {len(values)} ranks")
    return Finding(
        Topic.MPI,
        check,
        Level.ERROR,
        told({f"rank {rank}": text for rank, text in values.items()}),
        "load one MPI on every node: the same module, venv or container (XPYD_SITE, launch/sites)",
    )
