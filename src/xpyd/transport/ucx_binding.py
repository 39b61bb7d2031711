"""How Python reaches UCX: ucxx's core API, or where only that is installed ucx-py's, which its authors retired."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from xpyd.transport.base import Bytes, TransportError
from xpyd.transport.ucx_messages import Message, MessageCalls, Table


class UcxxBinding:
    """ucxx's core API (``ucxx._lib``), the default; messages go past it, see ucx_messages."""

    name = "ucxx"
    gathers = True

    def __init__(self, settings: Mapping[str, str], peer_errors: bool) -> None:
        import ucxx._lib.libucxx as api

        self._api, self._peer_errors = api, peer_errors
        self._context = api.UCXContext(dict(settings), feature_flags=(api.Feature.TAG,))
        self._worker = api.UCXWorker(self._context)
        self._worker_handle = int(self._worker.handle)
        self._calls = MessageCalls(self.library())

    def address(self) -> bytes:
        return bytes(self._worker.address)

    def endpoint(self, address: bytes) -> Any:
        remote = self._api.UCXAddress.create_from_buffer(address)
        return self._api.UCXEndpoint.create_from_worker_address(self._worker, remote, self._peer_errors)

    def send(self, endpoint: Any, view: Bytes, address: int, tag: int) -> Message:
        return self._calls.send(endpoint.handle, address, view.nbytes, tag)

    def recv(self, endpoint: Any, view: Bytes, address: int, tag: int) -> Message:
        return self._calls.recv(self._worker_handle, address, view.nbytes, tag)

    def gather(self, endpoint: Any, table: Table, tag: int) -> Message:
        return self._calls.gather(endpoint.handle, table, tag)

    def scatter(self, table: Table, nbytes: int, tag: int) -> Message:
        return self._calls.scatter(self._worker_handle, table, nbytes, tag)

    def close(self, endpoint: Any) -> None:
        endpoint.close_blocking()

    def cancel(self, message: Message) -> None:
        self._calls.cancel(self._worker_handle, message)

    def progress(self) -> bool:
        return bool(self._worker.progress_once())

    def handle(self, endpoint: Any) -> int:
        return int(endpoint.handle)

    def info(self) -> str:
        return str(self._context.info)

    def library(self) -> str:
        return str(self._api.__file__)


class CallbackRequest:
    """A ucx-py request: its callback tells the end."""

    def __init__(self) -> None:
        self.completed = False
        self.request: Any = None  # of a receive
        self._error: Exception | None = None

    def end(self, request: Any, error: Exception | None) -> None:
        self.completed, self._error = True, error

    def check_error(self) -> None:
        if self._error is not None:
            raise self._error


class UcxPyBinding:
    """ucx-py's core API (``ucp._libs.ucx_api``, 0.45), for a site that still has it."""

    name = "ucx-py"
    gathers = False  # it takes single arrays

    def __init__(self, settings: Mapping[str, str], peer_errors: bool) -> None:
        from ucp._libs import ucx_api as api
        from ucp._libs.arr import Array

        self._api, self._array, self._peer_errors = api, Array, peer_errors
        self._context = api.UCXContext(dict(settings), feature_flags=(api.Feature.TAG,))
        self._worker = api.UCXWorker(self._context)

    def address(self) -> bytes:
        return bytes(self._worker.get_address())

    def endpoint(self, address: bytes) -> Any:
        remote = self._api.UCXAddress.from_buffer(address)
        return self._api.UCXEndpoint.create_from_worker_address(self._worker, remote, self._peer_errors)

    def send(self, endpoint: Any, view: Bytes, address: int, tag: int) -> CallbackRequest:
        ended = CallbackRequest()
        array = self._array(view)
        if self._api.tag_send_nb(endpoint, array, array.nbytes, tag=tag, cb_func=ended.end) is None:
            ended.completed = True  # done at once: UCX calls no callback then
        return ended

    def recv(self, endpoint: Any, view: Bytes, address: int, tag: int) -> CallbackRequest:
        ended = CallbackRequest()
        array = self._array(view)
        request = self._api.tag_recv_nb(self._worker, array, array.nbytes, tag=tag, cb_func=ended.end, ep=endpoint)
        if request is None:
            ended.completed = True
        ended.request = request
        return ended

    def gather(self, endpoint: Any, table: Table, tag: int) -> CallbackRequest:
        raise NotImplementedError("see gathers")

    def scatter(self, table: Table, nbytes: int, tag: int) -> CallbackRequest:
        raise NotImplementedError("see gathers")

    def close(self, endpoint: Any) -> None:
        endpoint.abort()

    def cancel(self, request: CallbackRequest) -> None:
        self._worker.request_cancel(request.request)

    def progress(self) -> bool:
        self._worker.progress()  # ucx-py does not tell whether anything moved
        return False

    def handle(self, endpoint: Any) -> int:
        return int(endpoint.handle)

    def info(self) -> str:
        return str(self._context.info())

    def library(self) -> str:
        return str(self._api.__file__)


Binding = UcxxBinding | UcxPyBinding


def installed_binding() -> type[Binding]:
    """The binding that imports. Raises TransportError with the remedy where there is none."""
    os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")  # the wheel's loader sets variables that UCX warns about
    reasons = []
    for kind, module in ((UcxxBinding, "ucxx._lib.libucxx"), (UcxPyBinding, "ucp._libs.ucx_api")):
        try:
            __import__(module)
        except (ImportError, OSError) as error:
            reasons.append(f"{module}: {error}")
        else:
            return kind
    raise TransportError(
        f"transport.name=ucx: no UCX binding here ({'; '.join(reasons)}); pip install 'xpyd[embedded]' brings ucxx, or "
        "choose transport=mpi"
    )
