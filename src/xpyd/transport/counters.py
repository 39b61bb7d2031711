"""Bytes that the node's own interfaces received: the count that neither the ledger nor the transport can influence."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

# Of the calling process's network namespace. /sys/class/net shows that of whoever mounted /sys, so not it.
NET_COUNTERS = Path("/proc/self/net/dev")
NUM_HEADER_LINES = 2
LOOPBACK = "lo"
INFINIBAND = Path("/sys/class/infiniband")
IB_WORD_BYTES = 4  # port_rcv_data counts 32-bit words (InfiniBand specification, PortCounters)


def crossed_interfaces(lanes: Iterable[str], unknown_between_nodes: bool, present: Collection[str]) -> set[str]:
    """Those of ``present`` that KV crosses, by its lanes (``tcp/eth0``); shared memory crosses none.

    Where a transport cannot name its wire between two nodes, any interface but loopback may be it.
    """
    named = {lane.rpartition("/")[2] for lane in lanes} & set(present)
    return named | (set(present) - {LOOPBACK}) if unknown_between_nodes else named


def interface_bytes(net_counters: Path = NET_COUNTERS, infiniband: Path = INFINIBAND) -> dict[str, int]:
    """Received bytes so far by interface (``eth0``) and InfiniBand port (``mlx5_0:1``) of this network namespace."""
    counts = {}
    lines = net_counters.read_text().splitlines()[NUM_HEADER_LINES:] if net_counters.exists() else []
    for line in lines:
        name, _, values = line.partition(":")
        counts[name.strip()] = int(values.split()[0])
    for path in infiniband.glob("*/ports/*/counters/port_rcv_data"):
        device, port = path.parts[-5], path.parts[-3]
        counts[f"{device}:{port}"] = int(path.read_text()) * IB_WORD_BYTES
    return counts
