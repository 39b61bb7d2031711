"""Gathers the facts of this node from /proc, /sys, /dev and the CUDA driver. Nothing here judges, nothing waits."""

from __future__ import annotations

import ctypes
import resource
import shutil
import socket
from pathlib import Path

from xpyd.environment import commit, machine, versions
from xpyd.preflight.facts import UNKNOWN_NUMA, Gpus, NodeFacts, Port

NO_OVERCOMMIT = "2"  # vm.overcommit_memory: never more than CommitLimit
KIB = 1024


def gather_node(checkout: Path, root: Path = Path("/")) -> NodeFacts:
    """This node's facts; ``root`` is where /proc, /sys and /dev are looked for. A fact that is not there is empty."""
    memory = meminfo(root)
    strict_commit = _text(root / "proc/sys/vm/overcommit_memory") == NO_OVERCOMMIT
    return NodeFacts(
        memlock_bytes=_memlock(),
        available_bytes=memory.get("MemAvailable", 0),
        commit_left_bytes=memory.get("CommitLimit", 0) - memory.get("Committed_AS", 0) if strict_commit else None,
        swap_used_bytes=memory.get("SwapTotal", 0) - memory.get("SwapFree", 0),
        num_hugepages=memory.get("HugePages_Total", 0),
        hugepage_bytes=memory.get("Hugepagesize", 0),
        transparent_hugepages=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        shm_free_bytes=_free(root / "dev/shm"),
        numa_cores=numa_cores(root),
        interfaces=interfaces(root),
        infiniband=infiniband_ports(root),
        num_verbs_devices=len(list(root.glob("dev/infiniband/uverbs*"))),
        gpus=gpus(root),
        versions={**versions(), "kernel": str(machine()["kernel"]), "commit": commit(checkout)},
    )


def meminfo(root: Path) -> dict[str, int]:
    """/proc/meminfo in bytes; counts (HugePages_Total) as they are."""
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number, *unit = value.split()
        found[name] = int(number) * (KIB if unit else 1)
    return found


def numa_cores(root: Path) -> tuple[tuple[int, ...], ...]:
    """The cores of each NUMA node, in the order of the nodes."""
    folders = sorted(root.glob("sys/devices/system/node/node[0-9]*"), key=lambda path: int(path.name[4:]))
    return tuple(parse_cores(_text(folder / "cpulist")) for folder in folders)


def parse_cores(text: str) -> tuple[int, ...]:
    """The kernel's list notation: ``0-2,8`` is (0, 1, 2, 8)."""
    cores: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return tuple(cores)


def interfaces(root: Path) -> tuple[Port, ...]:
    """Network interfaces of this network namespace, without the loopback."""
    names = sorted(name for _, name in socket.if_nameindex() if name != "lo")
    return tuple(
        Port(name, _text(folder / "operstate") or "unknown", _numa_node(folder))
        for name in names
        for folder in [root / "sys/class/net" / name]
    )


def infiniband_ports(root: Path) -> tuple[Port, ...]:
    """Every port of every InfiniBand or RoCE device; the kernel writes a state as ``4: ACTIVE``."""
    return tuple(
        Port(
            f"{port.parts[-3]}:{port.name}",
            _text(port / "state").partition(":")[2].strip() or "unknown",
            _numa_node(port.parents[1]),
        )
        for port in sorted(root.glob("sys/class/infiniband/*/ports/*"))
    )


def gpus(root: Path) -> Gpus:
    """NVIDIA GPUs, and the two ways for a network device to reach their memory."""
    return Gpus(
        num_devices=len(list(root.glob("dev/nvidia[0-9]*"))),
        num_visible=_cuda_devices(),
        peermem=(root / "sys/module/nvidia_peermem").exists(),
        open_driver="Open Kernel Module" in _text(root / "proc/driver/nvidia/version"),
    )


def _cuda_devices() -> int:
    """Asked of the driver itself: importing torch for it would cost seconds."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    number = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(number)):
        return 0
    return number.value


def _memlock() -> int | None:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return None if limit == resource.RLIM_INFINITY else limit


def _numa_node(device: Path) -> int:
    text = _text(device / "device/numa_node")
    return int(text) if text else UNKNOWN_NUMA


def _chosen(text: str) -> str:
    """``always [madvise] never`` is ``madvise``."""
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free if folder.exists() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
