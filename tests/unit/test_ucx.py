"""The UCX transport in one process: what UCX refuses is named, and either Python binding serves."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xpyd.kv.layout import Span
from xpyd.transport import ucx
from xpyd.transport.base import TransportError
from xpyd.transport.fabric import FabricConfig, local_devices
from xpyd.transport.registry import TransportConfig
from xpyd.transport.ucx_binding import UcxPyBinding
from xpyd.transport.ucx_messages import stretches

BOTH_SIZES = {"TCP_TX_SEG_SIZE": "256k", "TCP_RX_SEG_SIZE": "256k"}


@pytest.fixture
def ucxx() -> None:
    pytest.importorskip("ucxx._lib.libucxx", reason="no ucxx: pip install 'xpyd[embedded]'")


@pytest.mark.usefixtures("ucxx")
@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({**BOTH_SIZES, "NOSUCH": "3"}, r"starts without NOSUCH=3 \("),
        ({"TCP_TX_SEG_SIZE": "256k"}, r"starts without TCP_TX_SEG_SIZE=256k \("),
        ({"NOSUCH": "3", "NEITHER": "1"}, "more than one option is wrong"),
    ],
)
def test_the_option_that_ucx_refuses_is_named(settings: dict[str, str], hint: str) -> None:
    with pytest.raises(TransportError, match=hint):
        ucx.UcxTransport(0, {"TLS": "tcp", **settings})


@pytest.mark.usefixtures("ucxx")
def test_devices_are_those_that_ucx_opened() -> None:
    assert ucx.UcxTransport(0, {"TLS": "tcp", "NET_DEVICES": "lo"}).devices() == ["lo"]


@pytest.mark.usefixtures("ucxx")
def test_a_device_that_ucx_would_silently_replace_is_refused() -> None:
    usable = ucx.UcxTransport(0, {}).devices()
    down = [name for name in local_devices() if name not in usable]
    if not down:
        pytest.skip("every interface of this machine is up, with an address")
    fabric = FabricConfig("test", 10.0, net_devices=(down[0],))
    with pytest.raises(TransportError, match=f"UCX cannot use {down[0]}"):
        TransportConfig("ucx").build(fabric, SimpleNamespace(rank=0))


class FakeUcxPy(ModuleType):
    """As much of ``ucp._libs.ucx_api`` as the transport calls; sends end at once, receives when ``deliver`` says."""

    Feature = SimpleNamespace(TAG=1)

    def __init__(self) -> None:
        super().__init__("ucp._libs.ucx_api")
        self.receives: list[Any] = []

    def UCXContext(self, settings: dict[str, str], feature_flags: tuple[int, ...]) -> SimpleNamespace:
        return SimpleNamespace(settings=settings)

    def UCXWorker(self, context: SimpleNamespace) -> SimpleNamespace:
        return SimpleNamespace(progress=lambda: None, get_address=lambda: b"here")

    def tag_send_nb(self, endpoint: Any, array: Any, nbytes: int, tag: int, cb_func: Any) -> None:
        return None

    def tag_recv_nb(self, worker: Any, array: Any, nbytes: int, tag: int, cb_func: Any, ep: Any) -> object:
        self.receives.append(cb_func)
        return object()


@pytest.fixture
def ucx_py(monkeypatch: pytest.MonkeyPatch) -> FakeUcxPy:
    """A site without ucxx and with ucx-py."""
    fake = FakeUcxPy()
    package = ModuleType("ucp._libs")
    package.ucx_api = fake  # type: ignore[attr-defined]
    array = ModuleType("ucp._libs.arr")
    array.Array = lambda view: view  # type: ignore[attr-defined]
    modules = {"ucp": ModuleType("ucp"), "ucp._libs": package, "ucp._libs.ucx_api": fake, "ucp._libs.arr": array}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "ucxx._lib.libucxx", None)
    return fake


def test_ucx_py_serves_where_ucxx_is_missing(ucx_py: FakeUcxPy) -> None:
    assert ucx.UcxTransport(0, {}).address() == b"here"


def test_a_ucx_py_request_ends_with_its_callback_or_at_once(ucx_py: FakeUcxPy) -> None:
    binding = UcxPyBinding({}, peer_errors=True)
    assert binding.send(None, np.zeros(1, np.uint8), 0, 1).completed
    landed, lost = (binding.recv(None, np.zeros(1, np.uint8), 0, tag) for tag in (1, 2))
    assert not landed.completed
    ucx_py.receives[0](None, None)
    ucx_py.receives[1](None, ConnectionResetError("gone"))
    assert landed.completed
    landed.check_error()
    with pytest.raises(ConnectionResetError):
        lost.check_error()


def test_neither_binding_gives_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ucxx._lib.libucxx", "ucp._libs.ucx_api"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TransportError, match=r"pip install 'xpyd\[embedded\]'.*transport=mpi"):
        ucx.UcxTransport(0, {})


def test_neighbours_in_memory_are_one_stretch_of_a_message() -> None:
    spans = [Span(64, 64), Span(128, 32), Span(0, 64), Span(64, 8), Span(200, 8)]
    assert stretches(spans) == [Span(64, 96), Span(0, 72), Span(200, 8)], "in the order of the message, not of memory"
    assert stretches(spans[:1]) == spans[:1]
