"""The fabric: UCX options from config, devices that exist, and no fallback in strict mode."""

from __future__ import annotations

import pytest

from xpyd.transport.base import TransportError
from xpyd.transport.counters import interface_bytes
from xpyd.transport.fabric import FabricConfig, local_devices


def fabric(**settings: object) -> FabricConfig:
    return FabricConfig(name="test", rate_gbps=10.0, **settings)  # type: ignore[arg-type]


def test_settings_are_ucx_options() -> None:
    found = fabric(tls=("tcp",), net_devices=("eth0", "eth1"), ucx={"UCX_TCP_TX_SEG_SIZE": "64k"}).settings()
    assert found == {"TLS": "tcp", "NET_DEVICES": "eth0,eth1", "TCP_TX_SEG_SIZE": "64k"}


def test_a_missing_device_is_named_with_what_is_here() -> None:
    with pytest.raises(TransportError, match=r"fabric\.net_devices=\['nosuch0'\].*it has .*lo"):
        fabric(net_devices=("nosuch0",)).check_devices()
    fabric(net_devices=(local_devices()[0],)).check_devices()


@pytest.mark.parametrize(
    ("tls", "route"),
    [(("tcp",), "tcp/eth0"), (("rc", "ud"), "rc_verbs/mlx5_0:1"), (("ib",), "rc_mlx5/mlx5_0:1+ud_mlx5/mlx5_0:1")],
)
def test_the_wire_asked_for_passes(tls: tuple[str, ...], route: str) -> None:
    fabric(tls=tls, strict=True).check_route(route)


@pytest.mark.parametrize(("tls", "route"), [(("rc", "ud"), "tcp/eth0"), (("tcp",), "unknown"), (("rc",), "rc_mlx5/a:1+tcp/b")])
def test_a_fallback_is_refused_in_strict_mode(tls: tuple[str, ...], route: str) -> None:
    with pytest.raises(TransportError, match=r"fabric\.strict=true"):
        fabric(tls=tls, strict=True).check_route(route)
    fabric(tls=tls).check_route(route)


def test_another_device_is_refused_in_strict_mode() -> None:
    with pytest.raises(TransportError, match="eth1"):
        fabric(net_devices=("eth0",), strict=True).check_route("tcp/eth1")


def test_strict_without_anything_to_hold_ucx_to_is_refused() -> None:
    with pytest.raises(ValueError, match="strict=true with neither"):
        fabric(strict=True)


def test_one_setting_in_two_places_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['TLS'\]"):
        fabric(ucx={"UCX_TLS": "tcp"})


def test_interface_counters_are_readable() -> None:
    assert interface_bytes()["lo"] >= 0
