"""Judges UCX and the wire: what UCX has, what the fabric asks for, and which route each pair really takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xpyd.preflight.facts import NodeFacts, PairFacts, RankFacts
from xpyd.preflight.finding import Finding, Level, Topic, by_value, told
from xpyd.preflight.judge_ranks import split_remedy
from xpyd.transport.base import TransportError
from xpyd.transport.fabric import ALIASES, FabricConfig

INFINIBAND = frozenset(ALIASES["ib"])
RELIABLE = ("rc_", "dc_")
SEE_STDERR = "see UCX's own words on stderr (rank-*.log of the ranks), and change the option that is named"


def wants_infiniband(fabric: FabricConfig) -> bool:
    """Whether ``fabric.tls`` names an InfiniBand transport."""
    return any(INFINIBAND & {name, *ALIASES.get(name, ())} for name in fabric.tls)


def judge_ucx(ranks: Sequence[RankFacts], needed: bool) -> list[Finding]:
    """One UCX on all ranks, and what it could use. ``needed``: the transport is UCX's."""
    without = {f"rank {rank.rank} on {rank.node}": rank.ucx.error for rank in ranks if rank.ucx.error}
    if without and not needed:
        return [Finding(Topic.UCX, "library", Level.OK, "none, and this transport needs none")]
    if without:
        return [
            Finding(Topic.UCX, f"library, {', '.join(names)}", Level.ERROR, *split_remedy(text, SEE_STDERR))
            for text, names in by_value(without).items()
        ]
    versions = {f"rank {rank.rank}": f"UCX {rank.ucx.version} by {rank.ucx.binding}" for rank in ranks}
    agree = len(by_value(versions)) == 1
    return [
        Finding(
            Topic.UCX,
            "library",
            Level.OK if agree else Level.ERROR,
            told(versions) + (f" on all {len(ranks)} ranks" if agree else ""),
            "" if agree else "load one UCX on every node: the same module, venv or container",
        ),
        Finding(Topic.UCX, "available", Level.OK, told({rank.node: ", ".join(rank.ucx.resources) for rank in ranks})),
    ]


def judge_infiniband(nodes: Mapping[str, NodeFacts], ranks: Sequence[RankFacts], fabric: FabricConfig) -> list[Finding]:
    """InfiniBand on each node, and whether UCX can use it; an error where the fabric asks for it."""
    wanted = wants_infiniband(fabric)
    judged = {
        name: _infiniband(node, all(rank.ucx.has(*RELIABLE) for rank in ranks if rank.node == name), wanted)
        for name, node in nodes.items()
    }
    return [
        Finding(Topic.UCX, f"InfiniBand on {', '.join(names)}", level, found, remedy)
        for (level, found, remedy), names in by_value(judged).items()
    ]


def judge_opened(errors: Mapping[str, str]) -> list[Finding]:
    """The transport as the fabric asks for it; ``errors``: why it did not open, by place, or empty."""
    refused = by_value({name: error for name, error in errors.items() if error})
    found = [
        Finding(Topic.UCX, f"fabric on {', '.join(names)}", Level.ERROR, *split_remedy(text, SEE_STDERR))
        for text, names in refused.items()
    ]
    return found or [Finding(Topic.UCX, "fabric", Level.OK, "every rank opened what the fabric asks for")]


def judge_routes(
    pairs: Sequence[PairFacts],
    node_of: Sequence[str],
    nodes: Mapping[str, NodeFacts],
    fabric: FabricConfig,
) -> list[Finding]:
    """The transport and device that each pair really uses; a fallback by name. ``node_of``: the node of each rank."""
    good, found = {}, []
    for pair in pairs:
        if not pair.route:
            continue  # it did not answer, which is a finding of its own
        ends = [nodes[node_of[pair.source]], nodes[node_of[pair.destination]]]
        problem = _route_problem(pair.route, ends, fabric)
        if problem is None:
            good[pair.name] = pair.route
        else:
            found.append(Finding(Topic.PAIRS, f"route {pair.name}", *problem))
    if good:
        text = told(good) + (" (MPI does not say which wire it takes)" if "unknown" in good.values() else "")
        found.append(Finding(Topic.PAIRS, "route", Level.OK, text))
    return found


def _route_problem(route: str, ends: Sequence[NodeFacts], fabric: FabricConfig) -> tuple[Level, str, str] | None:
    try:
        fabric.check_route(route)
    except TransportError as error:
        return Level.ERROR, str(error), "see the findings on InfiniBand; or fabric=tcp if that wire is meant"
    transports = {lane.partition("/")[0] for lane in route.split("+")}
    present = all(node.active_infiniband for node in ends)
    asked = wants_infiniband(fabric)
    open_choice = present and not fabric.tls and not fabric.net_devices
    if route == "unknown" or not (asked or open_choice):
        return None
    if not transports & INFINIBAND:
        why = f"fabric.tls={list(fabric.tls)} was asked for" if asked else "both nodes have InfiniBand"
        remedy = "a UCX with its ib plug-in (ucx_info -d | grep rc_), /dev/infiniband in the container, ulimit -l"
        return Level.WARNING, f"fallback: KV goes over {route}, though {why}", remedy
    if not any(transport.startswith(RELIABLE) for transport in transports):
        return Level.WARNING, f"{route}: datagrams only, slower", "see why rc is missing: UCX_LOG_LEVEL=info"
    return None


def _infiniband(node: NodeFacts, reliable: bool, wanted: bool) -> tuple[Level, str, str]:
    bad = Level.ERROR if wanted else Level.WARNING
    ports = ", ".join(f"{port.name} {port.state}" for port in node.infiniband)
    if not node.infiniband and not wanted:
        return Level.OK, "no device", ""
    if not node.infiniband:
        remedy = (
            "choose nodes that have it (--constraint), mount /sys and /dev/infiniband into the container, or fabric=tcp"
        )
        return bad, "the fabric asks for InfiniBand, but there is no device in /sys/class/infiniband", remedy
    if not node.active_infiniband:
        return (
            bad,
            f"{ports}: no port is active",
            "see ibstat: the cable, the subnet manager, or for RoCE the interface",
        )
    if not node.num_verbs_devices:
        return (
            bad,
            f"{ports}, but no /dev/infiniband/uverbs*",
            "mount /dev/infiniband into the container; modprobe ib_uverbs",
        )
    if not reliable:
        remedy = "a UCX with its ib plug-in: the site's module, or build with --with-verbs (ucx_info -d | grep rc_)"
        return bad, f"{ports}, but this UCX has no rc or dc transport", remedy
    return Level.OK, f"{ports}, rc in UCX", ""
