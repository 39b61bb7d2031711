"""What a virtual cluster consists of: names, addresses, partitions and folders. Pure; every other module asks here.

Everything lives in one folder::

    cluster.json   this description; marks the folder as ours
    lock           held by the cluster's init while it lives
    pid            the init, as the host numbers processes
    links.json     the rates of the links
    etc/           slurm.conf and friends, mounted over /etc/slurm of each node
    hosts          mounted over /etc/hosts of each node
    nodes/<name>   the process that holds the node's namespaces, as the cluster numbers processes
    log/           a log per daemon
    state/         slurmctld's state
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LOGIN = "login"
LOGIN_HOST = 254
MAX_NODES = 64
MAX_GPUS = 6  # as many devices as stand in for them
MTU_BYTES = 9000  # as clusters have it; headers then take under 1 % of a link
SUBNET = "10.77.0"
# A node's own, in its private /run. In a shared /tmp the daemons of two clusters, whose process ids count from 1 alike,
# take each other's session folders: mpirun then fails (PMIx: "listener thread failed to start", code 213) or hangs.
NODE_TMPDIR = "/run/xpyd/tmp"


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked; the message says why and what to do."""


def default_dir() -> Path:
    """Where the cluster lives unless ``--dir`` or ``XPYD_CLUSTER_DIR`` say otherwise: short, one per user."""
    return Path(os.environ.get("XPYD_CLUSTER_DIR") or f"/tmp/xpyd-cluster-{os.geteuid()}")


@dataclass(frozen=True)
class ClusterSpec:
    """N compute nodes ``n1..nN`` and a login node. ``cpus_per_node`` and ``gpus_per_node`` are made up for Slurm."""

    folder: Path
    num_nodes: int = 4
    rate: str = "10gbit"
    cpus_per_node: int = 8
    gpus_per_node: int = 2

    def __post_init__(self) -> None:
        if not 1 <= self.num_nodes <= MAX_NODES:
            raise ClusterError(f"num_nodes={self.num_nodes}: allowed are 1 to {MAX_NODES}")
        if not 0 <= self.gpus_per_node <= MAX_GPUS:
            raise ClusterError(f"gpus_per_node={self.gpus_per_node}: allowed are 0 to {MAX_GPUS}")

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """The compute nodes."""
        return tuple(f"n{index}" for index in range(1, self.num_nodes + 1))

    @property
    def hosts(self) -> tuple[str, ...]:
        """All nodes, the login node first."""
        return (LOGIN, *self.nodes)

    def address(self, host: str) -> str:
        """The IPv4 address of a node."""
        self.check(host)
        return f"{SUBNET}.{LOGIN_HOST if host == LOGIN else int(host[1:])}"

    def check(self, host: str) -> str:
        """``host`` itself. Raises ClusterError where there is no such node."""
        if host not in self.hosts:
            raise ClusterError(f"no node {host!r}: allowed are {', '.join(self.hosts)}")
        return host

    def partitions(self) -> dict[str, tuple[str, ...]]:
        """Partition name to nodes: the first half prefills, the rest decodes, ``all`` (the default) holds both."""
        half = (self.num_nodes + 1) // 2
        return {"all": self.nodes, "prefill": self.nodes[:half], "decode": self.nodes[half:] or self.nodes}

    @property
    def marker(self) -> Path:
        return self.folder / "cluster.json"

    def log(self, name: str) -> Path:
        return self.folder / "log" / f"{name}.log"

    def save(self) -> None:
        values = {key: value for key, value in vars(self).items() if key in self.__dataclass_fields__}
        self.marker.write_text(json.dumps(values, default=str, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ClusterSpec:
        """The description in ``folder``. Raises ClusterError where there is none."""
        try:
            values = json.loads((folder / "cluster.json").read_text())
        except FileNotFoundError:
            raise ClusterError(
                f"no virtual cluster in {folder}: start one (python -m launch.virtual_cluster up), or name its folder "
                "with --dir or XPYD_CLUSTER_DIR"
            ) from None
        return cls(**{**values, "folder": folder})
