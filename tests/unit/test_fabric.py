"""The fabric: UCX options from config, devices that exist, and no fallback in strict mode."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from xpyd.transport.base import TransportError
from xpyd.transport.fabric import FabricConfig, local_devices, locked_memory_limit
from xpyd.transport.ucx_route import opened_resources


def fabric(**settings: object) -> FabricConfig:
    return FabricConfig(name="test", rate_gbps=10.0, **settings)  # type: ignore[arg-type]


def test_settings_are_ucx_options() -> None:
    found = fabric(tls=("tcp",), net_devices=("eth0", "eth1"), ucx={"UCX_TCP_TX_SEG_SIZE": "64k"}).settings()
    assert found == {"TLS": "tcp", "NET_DEVICES": "eth0,eth1", "TCP_TX_SEG_SIZE": "64k"}


def test_some_settings_hold_only_where_all_goes_over_tcp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fabric(ucx={"TCP_SNDBUF": "4m"}, ucx_without_ib={"UCX_RNDV_SCHEME": "put_zcopy"})
    monkeypatch.setattr("xpyd.transport.fabric.INFINIBAND", tmp_path)
    assert found.settings() == {"TCP_SNDBUF": "4m", "RNDV_SCHEME": "put_zcopy"}
    (tmp_path / "mlx5_0" / "ports").mkdir(parents=True)
    assert found.settings() == {"TCP_SNDBUF": "4m"}, "over verbs it would cost the reads from pool to pool"


def test_a_missing_device_is_named_with_what_is_here() -> None:
    with pytest.raises(TransportError, match=r"fabric\.net_devices=\['nosuch0'\].*it has .*lo"):
        fabric(net_devices=("nosuch0",)).check_devices()
    fabric(net_devices=(local_devices()[0],)).check_devices()


@pytest.mark.parametrize(
    ("tls", "route"),
    [
        (("tcp",), "tcp/eth0"),
        (("rc", "ud"), "rc_verbs/mlx5_0:1"),
        (("ib",), "rc_mlx5/mlx5_0:1+ud_mlx5/mlx5_0:1"),
        (("sm",), "posix/memory+cma/memory"),
    ],
)
def test_the_wire_asked_for_passes(tls: tuple[str, ...], route: str) -> None:
    fabric(tls=tls, strict=True).check_route(route)


@pytest.mark.parametrize(
    ("tls", "route"), [(("rc", "ud"), "tcp/eth0"), (("tcp",), "unknown"), (("rc",), "rc_mlx5/a:1+tcp/b")]
)
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


@pytest.mark.parametrize("key", ["ucx", "ucx_without_ib"])
def test_one_setting_in_two_places_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"\['TLS'\]"):
        fabric(**{key: {"UCX_TLS": "tcp"}})


def test_a_device_without_its_port_stands_for_any_port() -> None:
    asked = fabric(net_devices=("mlx5_0",), strict=True)
    asked.check_route("rc_mlx5/mlx5_0:1")
    asked.check_usable(["mlx5_0:2", "eth0"])
    with pytest.raises(TransportError, match="mlx5_1"):
        asked.check_route("rc_mlx5/mlx5_1:1")


def test_a_port_that_the_device_does_not_have_is_refused() -> None:
    with pytest.raises(TransportError, match="no device lo:1 on this node"):
        fabric(net_devices=("lo:1",)).check_devices()


def test_a_device_that_ucx_left_out_is_refused() -> None:
    with pytest.raises(TransportError, match=r"UCX cannot use eth1 .* opened eth0, memory"):
        fabric(net_devices=("eth0", "eth1")).check_usable(["eth0", "memory"])


@pytest.mark.parametrize("name", ["all", "^lo", "mlx5_*"])
def test_open_ended_names_are_left_to_ucx_but_not_in_strict_mode(name: str) -> None:
    loose = fabric(net_devices=(name,))
    loose.check_devices()
    loose.check_usable([])
    with pytest.raises(ValueError, match="name what you expect"):
        fabric(net_devices=(name,), strict=True)


INFO = """\
#     component 1  :  tcp
#            md 1  :  component 1  tcp
#
#      resource 0  :  md 0  dev 0  flags -- self/memory
#      resource 1  :  md 1  dev 1  flags -- tcp/eth0
#      resource 2  :  md 5  dev 2  flags a- rc_mlx5/mlx5_0:1
#
"""


def test_opened_resources_are_read_from_what_ucx_prints() -> None:
    assert opened_resources(INFO) == ["rc_mlx5/mlx5_0:1", "self/memory", "tcp/eth0"]


def test_infiniband_is_refused_where_its_pool_cannot_be_locked() -> None:
    with pytest.raises(TransportError, match=r"the KV pool of 1 MiB, .* may lock 64 KiB; raise the memlock limit"):
        fabric(tls=("rc", "ud")).check_locked_memory(1 << 20, 64 << 10)
    fabric(tls=("rc", "ud")).check_locked_memory(1 << 20, 1 << 20)
    fabric(tls=("rc", "ud")).check_locked_memory(1 << 20, None)
    fabric(tls=("tcp",)).check_locked_memory(1 << 20, 64 << 10)


def test_the_limit_of_locked_memory_does_not_hold_for_who_may_lock_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))
    status.write_text("Name:\tpython\nCapEff:\t0000000000000000\n")
    assert locked_memory_limit(status) == 65536
    status.write_text("Name:\tpython\nCapEff:\t000001ffffffffff\n")
    assert locked_memory_limit(status) is None
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert locked_memory_limit(tmp_path / "none") is None
