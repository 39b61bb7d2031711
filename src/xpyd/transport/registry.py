"""The transports by name; a binding is imported only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from xpyd.transport.base import Transport
from xpyd.transport.fabric import FabricConfig


def _mpi(config: TransportConfig, fabric: FabricConfig, comm: Any) -> Transport:
    from xpyd.transport.mpi import MpiTransport

    return MpiTransport(comm)


def _ucx(config: TransportConfig, fabric: FabricConfig, comm: Any) -> Transport:
    from xpyd.transport.ucx import UcxTransport

    fabric.check_devices()
    return UcxTransport(comm.rank, fabric.settings(), config.peer_errors)


TRANSPORTS: dict[str, Callable[[TransportConfig, FabricConfig, Any], Transport]] = {
    "mpi": _mpi,
    "ucx": _ucx,
}


@dataclass(frozen=True)
class TransportConfig:
    """``peer_errors`` makes UCX notice a dead peer (a little slower). Other transports have no such switch."""

    name: Literal["mpi", "ucx", "loopback"]
    peer_errors: bool = True

    def __post_init__(self) -> None:
        if self.name not in TRANSPORTS:
            raise ValueError(
                f"name={self.name!r} works inside one process only (it is for unit tests), and prefill and decode are "
                f"separate ranks; choose transport={' or transport='.join(TRANSPORTS)}"
            )

    def build(self, fabric: FabricConfig, comm: Any) -> Transport:
        """The transport of this rank; collective over ``comm``. Raises TransportError."""
        return TRANSPORTS[self.name](self, fabric, comm)
