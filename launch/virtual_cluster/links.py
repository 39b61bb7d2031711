"""The links of the virtual cluster: rates, and the ``tc`` commands that make them so. Pure.

A node's link has its rate in both directions: at the node's own end for what it sends, at the switch's end for what
it receives. A rate for a pair of nodes is a class at each sender, chosen by destination address.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from launch.virtual_cluster.spec import ClusterError, ClusterSpec

UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
UNSHAPED = "none"
NO_LIMIT_BITS_PER_S = 100 * 10**9  # htb needs a number where a link is unshaped
# A burst passes unshaped: as little as the timer allows, or small KV transfers would not see the link's rate at all.
BURST_S = 0.0005
MIN_BURST_BYTES = 128 * 1024  # two whole offloaded segments
QUEUE_S = 0.02


def parse_rate(text: str) -> int | None:
    """``10gbit`` in bits per second; None for ``none`` (unshaped). Raises ClusterError."""
    if text == UNSHAPED:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]bit)", text.lower())
    bits_per_s = round(float(match[1]) * UNITS[match[2]]) if match else 0
    if not bits_per_s:
        raise ClusterError(f"rate {text!r}: write a number with kbit, mbit or gbit, such as 10gbit, or {UNSHAPED}")
    return bits_per_s


def burst_bytes(bits_per_s: int) -> int:
    """What may pass at full speed after a pause."""
    return max(MIN_BURST_BYTES, round(bits_per_s * BURST_S / 8))


def queue_bytes(bits_per_s: int) -> int:
    """What may wait for its turn before the switch drops."""
    return burst_bytes(bits_per_s) + round(bits_per_s * QUEUE_S / 8)


@dataclass
class Links:
    """The rate of every node's link, and of pairs that are slower than their nodes."""

    nodes: dict[str, str]
    pairs: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Links:
        content = json.loads((folder / "links.json").read_text())
        return cls(content["nodes"], {(first, second): rate for first, second, rate in content["pairs"]})

    def save(self, folder: Path) -> None:
        pairs = [[*pair, rate] for pair, rate in self.pairs.items()]
        (folder / "links.json").write_text(json.dumps({"nodes": self.nodes, "pairs": pairs}) + "\n")

    def set_node(self, node: str, rate: str) -> None:
        parse_rate(rate)
        self.nodes[node] = rate

    def set_pair(self, first: str, second: str, rate: str) -> None:
        """Set the rate between two nodes; ``none`` takes the pair's own limit away."""
        if first == second:
            raise ClusterError(f"--pair {first} {second}: a node has no link to itself")
        pair = (min(first, second), max(first, second))
        if parse_rate(rate) is None:
            self.pairs.pop(pair, None)
        else:
            self.pairs[pair] = rate

    def peers(self, node: str) -> dict[str, str]:
        """The rate to each node that ``node`` has a link of its own with."""
        return {pair[pair[0] == node]: rate for pair, rate in sorted(self.pairs.items()) if node in pair}


def receive_commands(links: Links, node: str) -> list[str]:
    """``tc`` lines for the switch's end of a node's link (the device is named like the node), on a bare device."""
    return _plain(node, links.nodes[node])


def send_commands(links: Links, node: str, spec: ClusterSpec) -> list[str]:
    """``tc`` lines for a node's own end, ``eth0``, on a bare device."""
    peers = links.peers(node)
    if not peers:
        return _plain("eth0", links.nodes[node])
    default = len(peers) + 1
    lines = [f"qdisc add dev eth0 root handle 1: htb default {default:x}"]
    lines += _htb_class(default, parse_rate(links.nodes[node]) or NO_LIMIT_BITS_PER_S)
    for index, (peer, rate) in enumerate(peers.items(), start=1):
        lines += _htb_class(index, parse_rate(rate) or NO_LIMIT_BITS_PER_S)
        match = f"u32 match ip dst {spec.address(peer)}/32"
        lines.append(f"filter add dev eth0 parent 1: protocol ip prio 1 {match} flowid 1:{index:x}")
    return lines


def _plain(device: str, rate: str) -> list[str]:
    bits_per_s = parse_rate(rate)
    if bits_per_s is None:
        return []
    burst, limit = burst_bytes(bits_per_s), queue_bytes(bits_per_s)
    return [f"qdisc add dev {device} root tbf rate {bits_per_s}bit burst {burst} limit {limit}"]


def _htb_class(index: int, bits_per_s: int) -> list[str]:
    burst, limit = burst_bytes(bits_per_s), queue_bytes(bits_per_s)
    rate = f"rate {bits_per_s}bit ceil {bits_per_s}bit burst {burst} cburst {burst} quantum {MIN_BURST_BYTES}"
    return [
        f"class add dev eth0 parent 1: classid 1:{index:x} htb {rate}",
        f"qdisc add dev eth0 parent 1:{index:x} bfifo limit {limit}",
    ]
