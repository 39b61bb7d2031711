"""Bytes that the node's own interfaces received: the count that neither the ledger nor the transport can influence."""

from __future__ import annotations

from pathlib import Path

NET = Path("/sys/class/net")
INFINIBAND = Path("/sys/class/infiniband")
IB_WORD_BYTES = 4  # port_rcv_data counts 32-bit words (InfiniBand specification, PortCounters)


def interface_bytes() -> dict[str, int]:
    """Received bytes so far by interface (``eth0``) and InfiniBand port (``mlx5_0:1``) of this network namespace."""
    counts = {}
    for path in NET.glob("*/statistics/rx_bytes") if NET.exists() else ():
        counts[path.parts[-3]] = int(path.read_text())
    for path in INFINIBAND.glob("*/ports/*/counters/port_rcv_data") if INFINIBAND.exists() else ():
        device, port = path.parts[-5], path.parts[-3]
        counts[f"{device}:{port}"] = int(path.read_text()) * IB_WORD_BYTES
    return counts
