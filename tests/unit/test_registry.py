"""What a transport cannot do is refused from the configuration alone, before UCX or MPI start."""

from __future__ import annotations

import pytest

from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig


def fabric(*tls: str, net_devices: tuple[str, ...] = ()) -> FabricConfig:
    return FabricConfig("test", 10.0, tls=tls, net_devices=net_devices)


def test_loopback_is_refused_across_processes() -> None:
    with pytest.raises(ValueError, match=r"loopback.*one process.*transport=mpi or transport=ucx"):
        TransportConfig("loopback")


def test_an_unknown_transport_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="name='ucxx' is unknown; choose transport=mpi or transport=ucx"):
        TransportConfig("ucxx")


@pytest.mark.parametrize("asked", [fabric("tcp"), fabric(net_devices=("eth0",))])
def test_mpi_cannot_be_held_to_a_wire(asked: FabricConfig) -> None:
    with pytest.raises(ValueError, match="transport=ucx, or fabric=auto"):
        TransportConfig("mpi").check(asked)
    TransportConfig("ucx").check(asked)


def test_mpi_takes_a_fabric_that_asks_for_nothing() -> None:
    TransportConfig("mpi").check(fabric())


@pytest.mark.parametrize("tls", [("sm",), ("posix", "cma"), ("shm", "self")])
def test_shared_memory_cannot_report_a_dead_peer(tls: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"transport\.peer_errors=false"):
        TransportConfig("ucx").check(fabric(*tls))
    TransportConfig("ucx", peer_errors=False).check(fabric(*tls))


@pytest.mark.parametrize("tls", [(), ("tcp",), ("sm", "tcp"), ("rc", "ud")])
def test_other_wires_can(tls: tuple[str, ...]) -> None:
    TransportConfig("ucx").check(fabric(*tls))
