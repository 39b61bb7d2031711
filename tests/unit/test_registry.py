"""What a transport cannot do is refused from the configuration alone, before UCX or MPI start."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest

from xpyd.placement import PlacementConfig
from xpyd.transport.base import Capabilities, Transport
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import (
    TRANSPORTS,
    Need,
    TransportConfig,
    placement_needs,
    transport_class,
    transports_with,
)

CAPABILITIES = [f.name for f in fields(Capabilities)]
CALLS = {
    "two_sided": ("send", "recv"),
    "one_sided_read": ("read",),
    "one_sided_write": ("write",),
}


def fabric(*tls: str, net_devices: tuple[str, ...] = ()) -> FabricConfig:
    return FabricConfig("test", 10.0, tls=tls, net_devices=net_devices)


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_need_is_answered_as_the_class_declares(name: str, capability: str) -> None:
    config, need = TransportConfig(name), Need("some.key=value", (capability,), "some.key=other")
    assert transport_class(name).name == name
    if getattr(transport_class(name).capabilities, capability):
        config.check(fabric(), [need])
        assert name in transports_with(capability)
        return
    able = " or ".join(f"transport={other}" for other in transports_with(capability))
    assert f"transport={name}" not in able
    with pytest.raises(ValueError) as caught:
        config.check(fabric(), [need])
    assert str(caught.value) == (
        f"transport.name={name} declares no {capability}, which some.key=value needs; choose {able}, or some.key=other"
    )


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize("capability", CALLS)
def test_a_class_offers_the_calls_that_it_declares_and_no_others(name: str, capability: str) -> None:
    kind = transport_class(name)
    for call in CALLS[capability]:
        offered = getattr(kind, call) is not getattr(Transport, call)
        assert offered == getattr(kind.capabilities, capability), f"{name}.{call}"


@pytest.mark.parametrize("name", TRANSPORTS)
def test_either_of_two_ways_will_do(name: str) -> None:
    TransportConfig(name).check(fabric(), [Need("transfer.direction=pull", ("two_sided", "one_sided_read"))])


def test_asking_for_capabilities_starts_neither_mpi_nor_ucx() -> None:
    ask = "from xpyd.transport.registry import *; [transport_class(name).capabilities for name in TRANSPORTS]"
    started = "[m for m in ('mpi4py', 'libucx', 'ucxx', 'nixl_cu12') if m in sys.modules]"
    found = subprocess.run([sys.executable, "-c", f"import sys; {ask}; print({started})"], capture_output=True)
    assert found.stdout.decode().strip() == "[]", found.stderr.decode()


def test_ranks_on_nodes_of_their_own_need_a_transport_between_nodes() -> None:
    apart = placement_needs(PlacementConfig(1, 1))
    assert [need.any_of for need in apart] == [("cross_process",), ("cross_node",)]
    assert apart[1].setting == "placement.allow_shared_node=false"
    together = placement_needs(PlacementConfig(1, 1, allow_shared_node=True))
    assert [need.any_of for need in together] == [("cross_process",)]


def test_loopback_is_refused_across_processes() -> None:
    with pytest.raises(ValueError, match=r"loopback.*one process.*transport=mpi or transport=nixl or transport=ucx"):
        TransportConfig("loopback")


def test_an_unknown_transport_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="name='ucxx' is unknown; choose transport=mpi or transport=nixl or "):
        TransportConfig("ucxx")


@pytest.mark.parametrize("asked", [fabric("tcp"), fabric(net_devices=("eth0",))])
def test_mpi_cannot_be_held_to_a_wire(asked: FabricConfig) -> None:
    with pytest.raises(ValueError, match=r"name=mpi .*takes_fabric.*fabric\.tls=.*transport=nixl or transport=ucx, or"):
        TransportConfig("mpi").check(asked)
    for name in ("nixl", "ucx"):
        TransportConfig(name).check(asked)


def test_mpi_takes_a_fabric_that_asks_for_nothing() -> None:
    TransportConfig("mpi").check(fabric())


def test_mpi_cannot_promise_to_report_a_dead_peer() -> None:
    with pytest.raises(ValueError, match=r"no peer_errors, which transport\.peer_errors=true needs; .*=null"):
        TransportConfig("mpi", peer_errors=True).check(fabric())


@pytest.mark.parametrize(
    ("name", "asked", "tls", "used"),
    [
        ("mpi", None, (), False),
        ("ucx", None, (), True),
        ("ucx", None, ("tcp",), True),
        ("ucx", None, ("sm",), False),
        ("ucx", False, (), False),
        ("nixl", None, (), True),
        ("nixl", None, ("shm", "self"), False),
        ("nixl", True, ("tcp",), True),
    ],
)
def test_peer_errors_resolve_by_transport_and_fabric(
    name: str, asked: bool | None, tls: tuple[str, ...], used: bool
) -> None:
    config = TransportConfig(name, asked)
    config.check(fabric(*tls))
    assert config.reports_peer_errors(fabric(*tls)) is used


@pytest.mark.parametrize("name", ["nixl", "ucx"])
@pytest.mark.parametrize("tls", [("sm",), ("posix", "cma"), ("shm", "self")])
def test_shared_memory_cannot_report_a_dead_peer(name: str, tls: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"set transport\.peer_errors=null"):
        TransportConfig(name, peer_errors=True).check(fabric(*tls))
    TransportConfig(name, peer_errors=False).check(fabric(*tls))


@pytest.mark.parametrize("tls", [(), ("tcp",), ("sm", "tcp"), ("rc", "ud")])
def test_other_wires_can(tls: tuple[str, ...]) -> None:
    TransportConfig("ucx", peer_errors=True).check(fabric(*tls))
