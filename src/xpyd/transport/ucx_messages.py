"""Tagged messages straight from libucp: what ucxx's Python does per message costs as much as 16 KiB on a wire.

Measured (2 cores, UCX 1.21): posting a receive takes 5.4 us through ucxx, 1.2 us here; 64 KiB at 4 GB/s take 16 us.
Contexts, workers, endpoints and progress stay with ucxx; this only posts on the handles that it gives out.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import Span

Table = NDArray[np.uint64]  # [stretches, 2]: first address and bytes of each, as ``ucp_dt_iov_t``
# ucp/api/ucp.h, since UCX 1.10
FIELD_DATATYPE = 1 << 3
FIELD_MEMORY_TYPE = 1 << 6
FLAG_NO_IMMEDIATE_COMPLETION = 1 << 16
HOST_MEMORY = 0
DATATYPE_IOV = 2
IN_PROGRESS = 1
EXACT_TAG = 2**64 - 1
FIRST_ERROR_POINTER = 2**64 - 100  # UCS_ERR_LAST: errors come as pointers from here on


class _Parameters(ctypes.Structure):
    """``ucp_request_param_t`` up to the last field used: UCX reads only those that the mask names."""

    _fields_ = (
        ("mask", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("request", ctypes.c_void_p),
        ("callback", ctypes.c_void_p),
        ("datatype", ctypes.c_uint64),
        ("user_data", ctypes.c_void_p),
        ("reply_buffer", ctypes.c_void_p),
        ("memory_type", ctypes.c_int),
    )


class _Received(ctypes.Structure):
    """``ucp_tag_recv_info_t``."""

    _fields_ = (("sender_tag", ctypes.c_uint64), ("length", ctypes.c_size_t))


def stretches(spans: Sequence[Span]) -> Sequence[Span]:
    """The spans of a message with neighbours in memory as one: each costs UCX time of its own, and one is no list."""
    found = [spans[0]]
    for span in spans[1:]:
        last = found[-1]
        if last.offset + last.nbytes == span.offset:
            found[-1] = Span(last.offset, last.nbytes + span.nbytes)
        else:
            found.append(span)
    return found


class Message:
    """A send or receive under way; ``completed`` asks UCX. One class, few layers: this runs once per piece."""

    __slots__ = ("_calls", "_landed", "_nbytes", "_request", "_status")

    def __init__(self, calls: MessageCalls, request: int | None, nbytes: int | None = None) -> None:
        """``request``: what UCX returned; ``nbytes``: how many shall come, None for a send."""
        self._calls, self._request, self._nbytes = calls, request, nbytes
        self._landed = nbytes
        self._status = 0
        if request is not None and request >= FIRST_ERROR_POINTER:
            self._status, self._request = request - 2**64, None

    @property
    def request(self) -> int | None:
        """UCX's handle, None once it is given back."""
        return self._request

    @property
    def completed(self) -> bool:
        request = self._request
        if request is None:  # at its end, and given back to UCX
            return True
        calls = self._calls
        status = calls.status(request) if self._nbytes is None else calls.test(request, calls.received_at)
        if status == IN_PROGRESS:
            return False
        if self._nbytes is not None:
            self._landed = calls.received.length
        self._status = status
        self._request = None
        calls.free(request)
        return True

    def check_error(self) -> None:
        """Raises ConnectionError with UCX's word for it, ValueError where fewer bytes came than were planned."""
        if self._status:
            raise ConnectionError(self._calls.describe(self._status))
        if self._landed != self._nbytes:
            raise ValueError(f"{self._landed} bytes came; the two ranks made different plans")


class MessageCalls:
    """The calls of one libucp: of that which the file ``binding`` links, also where MPI has loaded another one."""

    def __init__(self, binding: str) -> None:
        library = ctypes.PyDLL(binding)  # keeps the GIL: the calls are shorter than giving it away and back
        pointer, size, tag = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64
        self._send = library.ucp_tag_send_nbx
        self._send.argtypes, self._send.restype = (pointer, pointer, size, tag, pointer), pointer
        self._recv = library.ucp_tag_recv_nbx
        self._recv.argtypes, self._recv.restype = (pointer, pointer, size, tag, tag, pointer), pointer
        self.status = library.ucp_request_check_status
        self.status.argtypes = (pointer,)
        self.test = library.ucp_tag_recv_request_test
        self.test.argtypes = (pointer, pointer)
        self._cancel = library.ucp_request_cancel
        self._cancel.argtypes, self._cancel.restype = (pointer, pointer), None
        self.free = library.ucp_request_free
        self.free.argtypes, self.free.restype = (pointer,), None
        self._string = library.ucs_status_string
        self._string.argtypes, self._string.restype = (ctypes.c_int,), ctypes.c_char_p
        self._sending = _Parameters(mask=FIELD_MEMORY_TYPE, memory_type=HOST_MEMORY)
        self._receiving = _Parameters(mask=FIELD_MEMORY_TYPE | FLAG_NO_IMMEDIATE_COMPLETION, memory_type=HOST_MEMORY)
        self._sending_at, self._receiving_at = ctypes.addressof(self._sending), ctypes.addressof(self._receiving)
        self._gathering, self._scattering = self._list_of(self._sending), self._list_of(self._receiving)
        self._gathering_at, self._scattering_at = map(ctypes.addressof, (self._gathering, self._scattering))
        self.received = _Received()
        self.received_at = ctypes.addressof(self.received)

    def send(self, endpoint: int, address: int, nbytes: int, tag: int) -> Message:
        """Post a send of host memory on a ``ucp_ep_h``; the memory must stay until completed."""
        return Message(self, self._send(endpoint, address, nbytes, tag, self._sending_at))

    def recv(self, worker: int, address: int, nbytes: int, tag: int) -> Message:
        """Post a receive into host memory on a ``ucp_worker_h``."""
        return Message(self, self._recv(worker, address, nbytes, tag, EXACT_TAG, self._receiving_at), nbytes)

    def gather(self, endpoint: int, table: Table, tag: int) -> Message:
        """Post one send of many stretches of host memory; they and ``table`` must stay until completed."""
        return Message(self, self._send(endpoint, table.ctypes.data, len(table), tag, self._gathering_at))

    def scatter(self, worker: int, table: Table, nbytes: int, tag: int) -> Message:
        """Post one receive of ``nbytes`` bytes into many stretches of host memory, as in ``gather``."""
        request = self._recv(worker, table.ctypes.data, len(table), tag, EXACT_TAG, self._scattering_at)
        return Message(self, request, nbytes)

    def cancel(self, worker: int, message: Message) -> None:
        """Ask UCX to end a receive early; ``completed`` says when it has."""
        if message.request is not None:
            self._cancel(worker, message.request)

    @staticmethod
    def _list_of(single: _Parameters) -> _Parameters:
        return _Parameters(mask=single.mask | FIELD_DATATYPE, datatype=DATATYPE_IOV, memory_type=HOST_MEMORY)

    def describe(self, status: int) -> str:
        """UCX's own word for a status, such as ``Connection reset by remote peer``."""
        return str(self._string(status).decode())
