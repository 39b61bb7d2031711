"""The transports by name; a binding is imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xpyd.transport.base import Transport
from xpyd.transport.fabric import FabricConfig


def _mpi(config: TransportConfig, fabric: FabricConfig, comm: Any) -> Transport:
    from xpyd.transport.mpi import MpiTransport

    return MpiTransport(comm)


def _ucx(config: TransportConfig, fabric: FabricConfig, comm: Any) -> Transport:
    from xpyd.transport.ucx import UcxTransport

    fabric.check_devices()
    transport = UcxTransport(comm.rank, fabric.settings(), config.peer_errors)
    fabric.check_usable(transport.devices())
    return transport


TRANSPORTS: dict[str, Callable[[TransportConfig, FabricConfig, Any], Transport]] = {
    "mpi": _mpi,
    "ucx": _ucx,
}


@dataclass(frozen=True)
class TransportConfig:
    """``peer_errors``: UCX notices a dead peer, and uses only wires that can (not shared memory). MPI has no switch."""

    name: str
    peer_errors: bool = True

    def __post_init__(self) -> None:
        if self.name not in TRANSPORTS:
            why = "works inside one process only (it is for unit tests)" if self.name == "loopback" else "is unknown"
            raise ValueError(f"name={self.name!r} {why}; choose transport={' or transport='.join(TRANSPORTS)}")

    def check(self, fabric: FabricConfig) -> None:
        """Raises ValueError where this transport cannot do what the fabric asks; needs no UCX and no MPI."""
        if self.name != "ucx" and (fabric.tls or fabric.net_devices):
            raise ValueError(
                f"fabric.tls={list(fabric.tls)} and fabric.net_devices={list(fabric.net_devices)} speak to UCX, "
                f"transport.name={self.name} would ignore them; choose transport=ucx, or fabric=auto"
            )
        if self.name == "ucx" and self.peer_errors and fabric.shared_memory_only:
            raise ValueError(
                f"fabric.tls={list(fabric.tls)} with transport.peer_errors=true: UCX's shared memory cannot report a "
                "dead peer; set transport.peer_errors=false"
            )

    def build(self, fabric: FabricConfig, comm: Any) -> Transport:
        """The transport of this rank; collective over ``comm``. Raises ValueError (see ``check``), TransportError."""
        self.check(fabric)
        return TRANSPORTS[self.name](self, fabric, comm)
