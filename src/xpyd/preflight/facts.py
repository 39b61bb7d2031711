"""Plain facts of ranks, nodes and pairs: what the probes gather, and all that judging needs to know."""

from __future__ import annotations

from dataclasses import dataclass, field

UNKNOWN_NUMA = -1  # what the kernel says of a device on a machine with one NUMA node, or in a guest


@dataclass(frozen=True)
class Port:
    """A network interface, or a port of an InfiniBand device (``mlx5_0:1``)."""

    name: str
    state: str  # "up", "down"; of InfiniBand "ACTIVE", "DOWN", ...
    numa_node: int = UNKNOWN_NUMA


@dataclass(frozen=True)
class Gpus:
    """``num_devices``: what the driver shows of this node. ``num_visible``: what CUDA gives this process."""

    num_devices: int = 0
    num_visible: int = 0
    peermem: bool = False  # the nvidia_peermem module is loaded
    open_driver: bool = False  # NVIDIA's open kernel modules, which export dmabuf


@dataclass(frozen=True)
class NodeFacts:
    """One node, as seen by its first rank."""

    memlock_bytes: int | None  # None: unlimited
    available_bytes: int
    commit_left_bytes: int | None  # None: the kernel overcommits
    swap_used_bytes: int
    num_hugepages: int
    hugepage_bytes: int
    transparent_hugepages: str
    shm_free_bytes: int
    numa_cores: tuple[tuple[int, ...], ...]  # cores by NUMA node; empty where the kernel does not say
    interfaces: tuple[Port, ...]
    infiniband: tuple[Port, ...]
    num_verbs_devices: int  # /dev/infiniband/uverbs*
    gpus: Gpus
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def active_infiniband(self) -> list[str]:
        return [port.name for port in self.infiniband if port.state == "ACTIVE"]


@dataclass(frozen=True)
class UcxFacts:
    """UCX as it is without the fabric's settings: ``resources`` are what it could use (``tcp/eth0``)."""

    binding: str = ""
    version: str = ""
    resources: tuple[str, ...] = ()
    error: str = ""  # why there is none

    def has(self, *prefixes: str) -> bool:
        return any(resource.startswith(prefixes) for resource in self.resources)


@dataclass(frozen=True)
class RankFacts:
    rank: int
    node: str
    cores: tuple[int, ...]
    mpi: str
    mpi_abi: str
    ucx: UcxFacts
    clock_offset_ns: int
    clock_error_ns: int
    token_seen: bool  # this rank sees rank 0's file in the run folder
    free_bytes: int  # of the run folder's file system; 0 where it is not seen


@dataclass(frozen=True)
class PairFacts:
    """One prefill-decode pair. ``error``: what failed first; nothing is known of what comes after it."""

    source: int
    destination: int
    route: str = ""
    echo_s: float | None = None  # there and back, median
    rate_bytes_per_s: float | None = None
    error: str = ""
    unprobed: bool = False  # an end could not open its transport

    @property
    def name(self) -> str:
        return f"{self.source}->{self.destination}"
