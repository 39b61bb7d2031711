"""A virtual cluster for the length of a ``with``, for benchmarks and tests that need nodes for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from launch.virtual_cluster import namespaces
from launch.virtual_cluster.cluster import Cluster
from launch.virtual_cluster.life import Front
from launch.virtual_cluster.spec import ClusterSpec


def cluster_refusal() -> str | None:
    """Why there can be no cluster here, with the remedy; None where there can. Extends this process's PATH."""
    namespaces.extend_path()
    return namespaces.refusal()


@contextmanager
def cluster_of(spec: ClusterSpec) -> Iterator[Cluster]:
    """A cluster that is up, gone afterwards with all that runs in it. Raises ClusterError."""
    front = Front(spec)
    try:
        cluster = front.cluster()
        cluster.bring_up()
        yield cluster
    finally:
        front.end()


@contextmanager
def temporary_cluster(num_nodes: int) -> Iterator[Cluster]:
    """One with unshaped links, in a folder of its own. Raises ClusterError."""
    with cluster_of(ClusterSpec(Path(mkdtemp(prefix="xpyd-")), num_nodes=num_nodes, rate="none")) as cluster:
        yield cluster
