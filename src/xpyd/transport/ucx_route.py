"""Which transports and devices UCX opened and an endpoint really uses, asked of UCX: a silent fallback cannot hide.

The Python bindings do not offer ``ucp_ep_query``, so it is called through ctypes in the library that they link.
"""

from __future__ import annotations

import ctypes
import re


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


RESOURCE = re.compile(r"^#\s+resource\s+\d+\s.*\s(\S+/\S+)\s*$", re.MULTILINE)


def query_route(binding: str, endpoint: int) -> str:
    """``transport/device`` of every lane of an endpoint (its ``ucp_ep_h``), joined by "+"; "unknown" if UCX can't say.

    ``binding`` is the file of the Python binding: symbols looked up in it are those of its own libucp, also where MPI
    has loaded another one.
    """
    try:
        query = ctypes.CDLL(binding).ucp_ep_query
    except (OSError, AttributeError):  # UCX before 1.12
        return "unknown"
    entries = (_Entry * MAX_LANES)()
    attributes = _EpAttr(field_mask=FIELD_TRANSPORTS, num_entries=MAX_LANES, entry_size=ctypes.sizeof(_Entry))
    attributes.entries = ctypes.cast(entries, ctypes.POINTER(_Entry))
    if query(ctypes.c_void_p(endpoint), ctypes.byref(attributes)) != 0:
        return "unknown"
    lanes = [(e.transport.decode(), e.device.decode()) for e in entries[: attributes.num_entries]]
    return "+".join(dict.fromkeys(f"{transport}/{device}" for transport, device in lanes)) or "unknown"


def opened_resources(info: str) -> list[str]:
    """``transport/device`` in the text of ``ucp_context_print_info``: ``resource 1 : md 1 dev 1 flags -- tcp/eth0``."""
    return sorted(set(RESOURCE.findall(info)))


def library_version(binding: str) -> str:
    """The version of the libucp that a binding's file links, such as ``1.21.0``; "unknown" where it cannot be asked."""
    try:
        ask = ctypes.CDLL(binding).ucp_get_version_string
    except (OSError, AttributeError):
        return "unknown"
    ask.restype = ctypes.c_char_p
    return str(ask().decode())
