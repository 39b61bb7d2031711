"""Which transports and devices a UCX endpoint really uses, asked of UCX itself: a silent fallback cannot hide.

The Python bindings do not offer ``ucp_ep_query``, so it is called through ctypes in the library they have loaded.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any


class _Entry(ctypes.Structure):
    _fields_ = (("transport", ctypes.c_char_p), ("device", ctypes.c_char_p))


class _EpAttr(ctypes.Structure):
    """``ucp_ep_attr_t`` of UCX 1.12 and later (ucp/api/ucp.h)."""

    _fields_ = (
        ("field_mask", ctypes.c_uint64),
        ("name", ctypes.c_char * 32),
        ("local_sockaddr", ctypes.c_char * 128),
        ("remote_sockaddr", ctypes.c_char * 128),
        ("entries", ctypes.POINTER(_Entry)),
        ("num_entries", ctypes.c_uint),
        ("entry_size", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p),
    )


FIELD_TRANSPORTS = 1 << 3
MAX_LANES = 16


def query_route(endpoint: int) -> str:
    """``transport/device`` of every lane of an endpoint (its ``ucp_ep_h``), joined by "+"; "unknown" where UCX can't say."""
    library = _loaded_libucp()
    if library is None:
        return "unknown"
    entries = (_Entry * MAX_LANES)()
    attributes = _EpAttr(field_mask=FIELD_TRANSPORTS, num_entries=MAX_LANES, entry_size=ctypes.sizeof(_Entry))
    attributes.entries = ctypes.cast(entries, ctypes.POINTER(_Entry))
    if library.ucp_ep_query(ctypes.c_void_p(endpoint), ctypes.byref(attributes)) != 0:
        return "unknown"
    lanes = [(e.transport.decode(), e.device.decode()) for e in entries[: attributes.num_entries]]
    return "+".join(dict.fromkeys(f"{transport}/{device}" for transport, device in lanes)) or "unknown"


def _loaded_libucp() -> Any:
    """The libucp that this process has loaded already, which is the one the endpoint belongs to."""
    with open("/proc/self/maps") as maps:
        paths = {line.split()[-1] for line in maps if "libucp" in line and ".so" in line}
    named = sorted(path for path in paths if os.path.basename(path).startswith("libucp"))
    return ctypes.CDLL(named[0]) if named else None
