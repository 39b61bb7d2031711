"""The ucx-py fallback, against a tiny stand-in for its core API (the real one no longer installs from the index)."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xpyd.transport.ucx import UcxPyBinding


class FakeApi(ModuleType):
    """Sends end at once (None, no callback), receives end later through their callback, as ucx-py documents."""

    Feature = SimpleNamespace(TAG="tag")
    UCXEndpoint = SimpleNamespace(create_from_worker_address=lambda worker, remote, errors: ("ep", remote, errors))
    UCXAddress = SimpleNamespace(from_buffer=lambda address: address)

    def __init__(self) -> None:
        super().__init__("ucx_api")
        self.callbacks: list[Any] = []

    def UCXContext(self, settings: dict[str, str], feature_flags: tuple[str, ...]) -> Any:
        return SimpleNamespace(settings=settings)

    def UCXWorker(self, context: Any) -> Any:
        return SimpleNamespace(get_address=lambda: b"here", progress=lambda: None)

    def tag_send_nb(self, endpoint: Any, array: Any, nbytes: int, tag: int, cb_func: Any) -> None:
        return None

    def tag_recv_nb(self, worker: Any, array: Any, nbytes: int, tag: int, cb_func: Any, ep: Any) -> str:
        self.callbacks.append(cb_func)
        return "request"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    fake = FakeApi()
    arr = ModuleType("arr")
    arr.Array = lambda view: view  # type: ignore[attr-defined]
    libs = ModuleType("ucp._libs")
    libs.ucx_api, libs.arr = fake, arr  # type: ignore[attr-defined]
    for name, module in {"ucp": ModuleType("ucp"), "ucp._libs": libs, "ucp._libs.ucx_api": fake, "ucp._libs.arr": arr}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def test_requests_end_at_once_or_through_their_callback(api: FakeApi) -> None:
    binding = UcxPyBinding({"TLS": "tcp"}, peer_errors=True)
    assert binding.address() == b"here"
    endpoint = binding.endpoint(b"there")
    assert endpoint == ("ep", b"there", True)
    assert binding.send(endpoint, np.zeros(3, np.uint8), 5).completed
    received = binding.recv(endpoint, np.zeros(3, np.uint8), 5)
    assert not received.completed
    api.callbacks[0]("request", None)
    assert received.completed
    received.check_error()


def test_an_error_in_the_callback_is_raised(api: FakeApi) -> None:
    binding = UcxPyBinding({}, peer_errors=False)
    received = binding.recv("ep", np.zeros(3, np.uint8), 5)
    api.callbacks[0]("request", ConnectionResetError("gone"))
    with pytest.raises(ConnectionResetError, match="gone"):
        received.check_error()
