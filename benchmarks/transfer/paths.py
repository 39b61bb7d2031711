"""The wires: shared memory, loopback, and a veth pair between two namespaces of a virtual cluster, shaped or not."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.virtual_cluster.cluster import Cluster
from launch.virtual_cluster.links import Links
from launch.virtual_cluster.spec import LOGIN, ClusterError

ROOT = Path(__file__).parents[2]
FORWARDED = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")  # a node's ranks start with an empty environment


@dataclass(frozen=True)
class Wire:
    """One path. ``rate`` is that of a veth pair (``none``: unshaped), None on paths that need no namespaces."""

    name: str
    fabric: str  # the preset in conf/fabric
    device: str | None
    layers_mib: int  # of one request of whole layers: a fraction of a second on this wire
    rate: str | None = None

    @property
    def shaped(self) -> bool:
        return self.rate not in (None, "none")

    def fabric_settings(self) -> dict[str, Any]:
        content = yaml.safe_load((ROOT / "conf" / "fabric" / f"{self.fabric}.yaml").read_text())
        assert isinstance(content, dict)
        return content


WIRES = (
    Wire("shm", "shm", None, 256),
    Wire("loopback", "tcp", "lo", 256),
    Wire("veth", "tcp", "eth0", 256, "none"),
    Wire("veth-10gbit", "tcp", "eth0", 256, "10gbit"),
    Wire("veth-1gbit", "tcp", "eth0", 32, "1gbit"),
)


def shape(cluster: Cluster, rate: str) -> None:
    links = Links.load(cluster.spec.folder)
    for node in cluster.spec.nodes:
        links.set_node(node, rate)
    cluster.shape(links, cluster.spec.nodes)


def destination_host(wire: Wire, cluster: Cluster | None) -> str:
    return "127.0.0.1" if wire.rate is None or cluster is None else cluster.spec.address(cluster.spec.nodes[1])


def ranks_command(wire: Wire, cluster: Cluster | None, num_sides: int, order_file: Path) -> list[str]:
    """The command that starts the ranks, sources on the first node and destinations on the second. Open MPI only."""
    num_ranks = 2 * num_sides
    options = [*("-n", str(num_ranks)), "--bind-to", "none", "--oversubscribe", "--mca", "pml", "ob1"]
    if os.geteuid() == 0:
        options.append("--allow-run-as-root")
    if wire.device is not None:  # what MPI would do on one node is shared memory
        options += ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", wire.device]
    if num_ranks > len(os.sched_getaffinity(0)):
        options += ["--mca", "mpi_yield_when_idle", "1"]
    mpirun = Path(sys.prefix) / "bin" / "mpirun"
    program = [sys.executable, "-m", "mpi4py", "-m", "benchmarks.transfer.ranks", str(order_file)]
    command = [str(mpirun) if mpirun.exists() else "mpirun", *options]
    if wire.rate is None:
        return [*command, *program]
    if cluster is None:
        raise ClusterError(f"path {wire.name} needs a virtual cluster")
    hosts = ",".join(f"{node}:{num_sides}" for node in cluster.spec.nodes)
    command += ["--host", hosts, "--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", str(ROOT / "launch/agent")]
    for name in FORWARDED:
        if name in os.environ:
            command += ["-x", name]
    return cluster.command(LOGIN, [*command, *program], directory=str(ROOT))


def labels(wires: Sequence[Wire]) -> list[str]:
    """What every table of these wires must carry."""
    found = ["CPU", "one machine"]
    return [*found, "emulated links"] if any(wire.rate is not None for wire in wires) else found
