"""The transports by name, and what a configuration may ask of each: its class declares, this module refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from xpyd.placement import PlacementConfig
from xpyd.transport.base import Capabilities, Transport
from xpyd.transport.fabric import FabricConfig

# The class of each, in the module of the same name. Importing one starts neither MPI nor UCX.
TRANSPORTS = {"mpi": "MpiTransport", "nixl": "NixlTransport", "ucx": "UcxTransport"}


def transport_class(name: str) -> type[Transport]:
    """The class of a registered transport."""
    found: type[Transport] = getattr(import_module(f"xpyd.transport.{name}"), TRANSPORTS[name])
    return found


def transports_with(*capabilities: str) -> list[str]:
    """The registered transports that declare at least one of ``capabilities`` (fields of Capabilities)."""
    return [name for name in TRANSPORTS if offers(transport_class(name).capabilities, *capabilities)]


def offers(capabilities: Capabilities, *names: str) -> bool:
    """True where at least one of ``names`` is declared."""
    return any(getattr(capabilities, name) for name in names)


@dataclass(frozen=True)
class Need:
    """What a setting asks of the transport: at least one of ``any_of`` (fields of Capabilities)."""

    setting: str  # key and value, such as "placement.allow_shared_node=false"
    any_of: tuple[str, ...]
    otherwise: str = ""  # a remedy beside another transport


def placement_needs(placement: PlacementConfig) -> list[Need]:
    """What a placement asks: its ranks are processes, and on nodes of their own unless it allows otherwise."""
    needs = [Need(f"placement {placement.name} of {placement.world_size} ranks", ("cross_process",))]
    if not placement.allow_shared_node:
        apart = Need("placement.allow_shared_node=false", ("cross_node",), "placement.allow_shared_node=true")
        needs.append(apart)
    if placement.several_ranks:
        needs.append(Need(f"placement.{placement.widths}", ("two_sided",), "instances of one rank"))
    return needs


@dataclass(frozen=True)
class TransportConfig:
    """``peer_errors``: report a dead peer, which leaves UCX only wires that can (no shared memory).

    Unset: yes where the transport and the fabric can; MPI cannot.
    """

    name: str
    peer_errors: bool | None = None

    def __post_init__(self) -> None:
        if self.name not in TRANSPORTS:
            why = "works inside one process only (it is for unit tests)" if self.name == "loopback" else "is unknown"
            raise ValueError(f"name={self.name!r} {why}; choose {_choice(TRANSPORTS)}")

    @property
    def capabilities(self) -> Capabilities:
        """What the transport declares."""
        return transport_class(self.name).capabilities

    def reports_peer_errors(self, fabric: FabricConfig) -> bool:
        """``peer_errors`` as it is used, with its default resolved."""
        if self.peer_errors is not None:
            return self.peer_errors
        return self.capabilities.peer_errors and not fabric.shared_memory_only

    def check(self, fabric: FabricConfig, needs: Sequence[Need] = ()) -> None:
        """Raises ValueError where this transport cannot do what the settings ask; starts no UCX and no MPI."""
        asked = []
        if self.peer_errors:
            asked.append(Need("transport.peer_errors=true", ("peer_errors",), "transport.peer_errors=null"))
        if fabric.tls or fabric.net_devices:
            wire = f"fabric.tls={list(fabric.tls)}, fabric.net_devices={list(fabric.net_devices)}"
            asked.append(Need(wire, ("takes_fabric",), "fabric=auto"))
        for need in (*asked, *needs):
            self._check(need)
        if self.peer_errors and fabric.shared_memory_only:
            raise ValueError(
                f"fabric.tls={list(fabric.tls)} with transport.peer_errors=true: UCX's shared memory cannot report a "
                "dead peer; set transport.peer_errors=null"
            )

    def _check(self, need: Need) -> None:
        if offers(self.capabilities, *need.any_of):
            return
        able = transports_with(*need.any_of)
        remedies = [*([_choice(able)] if able else []), *([need.otherwise] if need.otherwise else [])]
        raise ValueError(
            f"transport.name={self.name} declares no {' or '.join(need.any_of)}, which {need.setting} needs; choose "
            f"{', or '.join(remedies) or 'another setting'}"
        )

    def build(self, fabric: FabricConfig, comm: Any) -> Transport:
        """The transport of this rank; collective over ``comm``. Raises ValueError (see ``check``), TransportError."""
        self.check(fabric)
        return transport_class(self.name).build(fabric, self.reports_peer_errors(fabric), comm)


def _choice(names: Sequence[str] | dict[str, str]) -> str:
    return " or ".join(f"transport={name}" for name in names)
