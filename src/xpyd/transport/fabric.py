"""The fabric: which wire KV is meant to cross, how UCX is set up for it, and whether it really did."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from xpyd.transport.base import TransportError

NET = Path("/sys/class/net")
INFINIBAND = Path("/sys/class/infiniband")


@dataclass(frozen=True)
class FabricConfig:
    """``rate_gbps`` is the link's nominal rate in Gb/s (bits). Empty ``tls`` and ``net_devices``: UCX chooses.

    ``ucx`` holds further UCX options, without the UCX_ prefix. ``strict`` refuses a route outside ``tls`` and
    ``net_devices``. ``emulated`` labels every table: a shaped or software link is no figure of a real one.
    """

    name: str
    rate_gbps: Annotated[float, Gt(0)]
    tls: tuple[str, ...] = ()
    net_devices: tuple[str, ...] = ()
    ucx: dict[str, str] = field(default_factory=dict)
    strict: bool = False
    emulated: bool = False

    def __post_init__(self) -> None:
        if self.strict and not (self.tls or self.net_devices):
            raise ValueError(
                "strict=true with neither tls nor net_devices: there is nothing to hold UCX to; name the transports "
                "(fabric.tls) or devices (fabric.net_devices) that you expect"
            )
        clash = {"TLS", "NET_DEVICES"} & {key.removeprefix("UCX_") for key in self.ucx}
        if clash:
            raise ValueError(f"ucx sets {sorted(clash)}, which fabric.tls and fabric.net_devices are for; use those")

    def settings(self) -> dict[str, str]:
        """UCX options of this fabric, without the UCX_ prefix."""
        options = {key.removeprefix("UCX_"): value for key, value in self.ucx.items()}
        if self.tls:
            options["TLS"] = ",".join(self.tls)
        if self.net_devices:
            options["NET_DEVICES"] = ",".join(self.net_devices)
        return options

    def check_devices(self) -> None:
        """Raises TransportError for a device that this node does not have (``eth0``, ``mlx5_0:1``)."""
        here = local_devices()
        missing = [name for name in self.net_devices if name.split(":")[0] not in here]
        if missing:
            raise TransportError(
                f"fabric.net_devices={list(self.net_devices)}: no device {', '.join(missing)} on this node; it has "
                f"{', '.join(here) or 'none'}"
            )

    def check_route(self, route: str) -> None:
        """Raises TransportError in strict mode when a route uses what was not asked for, or cannot be told."""
        if not self.strict:
            return
        for lane in route.split("+"):
            transport, _, device = lane.partition("/")
            if self.tls and not any(_is(transport, wanted) for wanted in self.tls):
                raise TransportError(
                    f"fabric.strict=true: KV goes over {route}, but fabric.tls={list(self.tls)} was asked for; this is "
                    "a fallback. Check the device (ibv_devinfo) and UCX's reasons (UCX_LOG_LEVEL=debug)"
                )
            if self.net_devices and device not in self.net_devices:
                raise TransportError(
                    f"fabric.strict=true: KV goes over {route}, but fabric.net_devices={list(self.net_devices)}"
                )


# UCX aliases: what `tls` may say, and the transports that it stands for.
ALIASES = {
    "ib": ("rc_verbs", "rc_mlx5", "dc_mlx5", "ud_verbs", "ud_mlx5"),
    "rc": ("rc_verbs", "rc_mlx5"),
    "rc_v": ("rc_verbs",),
    "rc_x": ("rc_mlx5",),
    "ud": ("ud_verbs", "ud_mlx5"),
    "ud_v": ("ud_verbs",),
    "ud_x": ("ud_mlx5",),
    "dc": ("dc_mlx5",),
    "dc_x": ("dc_mlx5",),
    "sm": ("posix", "sysv", "cma", "knem", "xpmem"),
    "shm": ("posix", "sysv", "cma", "knem", "xpmem"),
}


def _is(transport: str, wanted: str) -> bool:
    return transport == wanted or transport in ALIASES.get(wanted, ())


def local_devices() -> list[str]:
    """Network interfaces and InfiniBand devices of this node."""
    return sorted(path.name for folder in (NET, INFINIBAND) if folder.exists() for path in folder.iterdir())
