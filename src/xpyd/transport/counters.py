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
    """Received bytes so far by interface (``eth0``) and InfiniBand port (``mlx5_0:1``) of this network namespace.

    A port of Soft-RoCE (``rxe0:1``) keeps no count: its packets are UDP, counted by the interface that it sits on.
    """
    counts = {}
    lines = net_counters.read_text().splitlines()[NUM_HEADER_LINES:] if net_counters.exists() else []
    for line in lines:
        name, _, values = line.partition(":")
        counts[name.strip()] = int(values.split()[0])
    for port in infiniband.glob("*/ports/*"):
        name = f"{port.parts[-3]}:{port.name}"
        counter, interface = port / "counters" / "port_rcv_data", port / "gid_attrs" / "ndevs" / "0"
        if counter.exists():
            counts[name] = int(counter.read_text()) * IB_WORD_BYTES
        elif is_software(port.parts[-3], infiniband) and interface.exists():
            counts[name] = counts.get(interface.read_text().strip(), 0)
    return counts


def is_software(device: str, infiniband: Path = INFINIBAND) -> bool:
    """Whether an InfiniBand device (``rxe0``) is a driver without hardware, such as Soft-RoCE."""
    return "virtual" in (infiniband / device).resolve().parts
