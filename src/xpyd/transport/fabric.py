"""The fabric: which wire KV is meant to cross, how UCX is set up for it, and whether it really did."""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from xpyd.transport.base import TransportError
from xpyd.units import format_bytes

INFINIBAND = Path("/sys/class/infiniband")
PROCESS_STATUS = Path("/proc/self/status")
CAP_IPC_LOCK = 14  # linux/capability.h
SHARED_MEMORY = ("posix", "sysv", "cma", "knem", "xpmem")
# UCX aliases: what `tls` may say, and the transports that it stands for.
ALIASES: dict[str, tuple[str, ...]] = {
    "ib": ("rc_verbs", "rc_mlx5", "dc_mlx5", "ud_verbs", "ud_mlx5"),
    "rc": ("rc_verbs", "rc_mlx5"),
    "rc_v": ("rc_verbs",),
    "rc_x": ("rc_mlx5",),
    "ud": ("ud_verbs", "ud_mlx5"),
    "ud_v": ("ud_verbs",),
    "ud_x": ("ud_mlx5",),
    "dc": ("dc_mlx5",),
    "dc_x": ("dc_mlx5",),
    "mm": ("posix", "sysv", "xpmem"),
    "sm": SHARED_MEMORY,
    "shm": SHARED_MEMORY,
}


@dataclass(frozen=True)
class FabricConfig:
    """``rate_gbps`` is the link's nominal rate in Gb/s (bits). Empty ``tls`` and ``net_devices``: UCX chooses.

    ``ucx`` holds further UCX options, without the UCX_ prefix; ``ucx_without_ib`` more of them for a node that has no
    InfiniBand device, where all KV goes over TCP. ``strict`` refuses a route outside ``tls`` and
    ``net_devices``. ``message_bytes``: scattered pieces share messages of up to this size where the transport can
    (``Transport.message_bytes``). ``emulated`` labels every table: a shaped or software link is no figure of a real
    one.
    """

    name: str
    rate_gbps: Annotated[float, Gt(0)]
    tls: tuple[str, ...] = ()
    net_devices: tuple[str, ...] = ()
    ucx: dict[str, str] = field(default_factory=dict)
    message_bytes: Annotated[int, Ge(0)] = 0
    strict: bool = False
    emulated: bool = False
    ucx_without_ib: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        named = (*self.tls, *self.net_devices)
        if self.strict and not named:
            raise ValueError(
                "strict=true with neither tls nor net_devices: there is nothing to hold UCX to; name the transports "
                "(fabric.tls) or devices (fabric.net_devices) that you expect"
            )
        open_ended = [name for name in named if _is_open_ended(name)]
        if self.strict and open_ended:
            raise ValueError(
                f"strict=true with {open_ended} in tls or net_devices: strict mode compares the route with names, so "
                "name what you expect"
            )
        clash = {"TLS", "NET_DEVICES"} & {key.removeprefix("UCX_") for key in (*self.ucx, *self.ucx_without_ib)}
        if clash:
            raise ValueError(f"ucx sets {sorted(clash)}, which fabric.tls and fabric.net_devices are for; use those")

    @property
    def shared_memory_only(self) -> bool:
        """True where ``tls`` leaves UCX nothing but the memory of one node."""
        transports = {transport for name in self.tls for transport in ALIASES.get(name, (name,))}
        return bool(transports) and transports <= {*SHARED_MEMORY, "self"}

    @property
    def options(self) -> dict[str, str]:
        """What ``ucx`` and ``ucx_without_ib`` come to on this node, without the UCX_ prefix."""
        chosen = self.ucx if _infiniband_devices() else self.ucx | self.ucx_without_ib
        return {key.removeprefix("UCX_"): value for key, value in chosen.items()}

    def settings(self) -> dict[str, str]:
        """UCX options of this fabric on this node, without the UCX_ prefix."""
        options = self.options
        if self.tls:
            options["TLS"] = ",".join(self.tls)
        if self.net_devices:
            options["NET_DEVICES"] = ",".join(self.net_devices)
        return options

    def check_devices(self) -> None:
        """Raises TransportError for a device that this node does not have (``eth0``, ``mlx5_0:1``)."""
        here = local_devices()
        missing = [name for name in self.net_devices if not _is_open_ended(name) and name not in here]
        if missing:
            raise TransportError(
                f"fabric.net_devices={list(self.net_devices)}: no device {', '.join(missing)} on this node; it has "
                f"{', '.join(here) or 'none'}"
            )

    def check_locked_memory(self, pool_bytes: int, limit_bytes: int | None) -> None:
        """Raises TransportError where InfiniBand is asked for and may lock less than the pool that it must register.

        UCX says nothing then: it tries to register its first buffers again and again, for ever (1.20, Soft-RoCE).
        """
        transports = {transport for name in self.tls for transport in ALIASES.get(name, (name,))}
        if not transports & set(ALIASES["ib"]) or limit_bytes is None or limit_bytes >= pool_bytes:
            return
        raise TransportError(
            f"fabric.tls={list(self.tls)}: InfiniBand locks the KV pool of {format_bytes(pool_bytes)}, and this "
            f"process may lock {format_bytes(limit_bytes)}; raise the memlock limit (ulimit -l unlimited; in Slurm "
            "LimitMEMLOCK=infinity for slurmd, PropagateResourceLimitsExcept=MEMLOCK)"
        )

    def check_usable(self, devices: Collection[str]) -> None:
        """Raises TransportError for a device that the node has but UCX does not use; it would warn and pick another.

        ``devices``: what UCX opened, such as ``eth0`` or ``mlx5_0:1``.
        """
        unused = [
            wanted
            for wanted in self.net_devices
            if not _is_open_ended(wanted) and not any(_is_device(device, wanted) for device in devices)
        ]
        if unused:
            raise TransportError(
                f"fabric.net_devices={list(self.net_devices)}: UCX cannot use {', '.join(unused)} with "
                f"fabric.tls={list(self.tls)}; is it up, with an address? UCX opened {', '.join(devices) or 'none'}"
            )

    def check_route(self, route: str) -> None:
        """Raises TransportError in strict mode when a route uses what was not asked for, or cannot be told."""
        if not self.strict:
            return
        for lane in route.split("+"):
            transport, _, device = lane.partition("/")
            if self.tls and not any(transport in (wanted, *ALIASES.get(wanted, ())) for wanted in self.tls):
                raise TransportError(
                    f"fabric.strict=true: KV goes over {route}, but fabric.tls={list(self.tls)} was asked for; this is "
                    "a fallback. Check the device (ibv_devinfo) and UCX's reasons (UCX_LOG_LEVEL=debug)"
                )
            if self.net_devices and not any(_is_device(device, wanted) for wanted in self.net_devices):
                raise TransportError(
                    f"fabric.strict=true: KV goes over {route}, but fabric.net_devices={list(self.net_devices)}"
                )


def local_devices() -> list[str]:
    """Network interfaces, InfiniBand devices and their ports that this process can reach: its network namespace's."""
    infiniband = _infiniband_devices()
    ports = [f"{device.name}:{port.name}" for device in infiniband for port in (device / "ports").iterdir()]
    return sorted([*(name for _, name in socket.if_nameindex()), *(device.name for device in infiniband), *ports])


def _infiniband_devices() -> list[Path]:
    return list(INFINIBAND.iterdir()) if INFINIBAND.exists() else []


def locked_memory_limit(status: Path = PROCESS_STATUS) -> int | None:
    """Bytes that this process may lock; None where nothing limits it, as with the right CAP_IPC_LOCK (root)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    rights = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(), re.MULTILINE) if status.exists() else None
    unlimited = limit == resource.RLIM_INFINITY or (rights and int(rights[1], 16) >> CAP_IPC_LOCK & 1)
    return None if unlimited else limit


def _is_open_ended(name: str) -> bool:
    """``all``, ``^tcp`` and ``mlx5_*`` are UCX's to interpret."""
    return name == "all" or name.startswith("^") or "*" in name


def _is_device(device: str, wanted: str) -> bool:
    """``mlx5_0`` stands for any of its ports, ``mlx5_0:1``."""
    return wanted in (device, device.split(":")[0])
