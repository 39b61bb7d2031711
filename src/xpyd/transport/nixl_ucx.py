"""The UCX inside nixl: how fabric settings reach it, what it refuses, and which wire it really uses.

nixl brings a UCX of its own and offers neither its context nor its endpoints. Its parameter for options
(``engine_config``) cuts lists at their commas and drops an option it does not know, without a word. So options are set
in the environment while the backend starts, after asking that UCX whether it knows them; and its log, kept in memory,
says what it opened.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from xpyd.transport.base import TransportError

LOG_VARIABLES = ("UCX_LOG_FILE", "UCX_LOG_LEVEL")
# As in "UCX  INFO    rank2 inter-node cfg#1 rma_am(tcp/eth0)  am(tcp/eth0)"; "self cfg" is the rank's way to itself.
ENDPOINT = re.compile(r"UCX  INFO\s+(\S+) (?!self)\S+ cfg#\d+ (.*)$", re.MULTILINE)
LANES = re.compile(r"\w+\(([^)]*)\)")
COMPLAINT = re.compile(r"UCX  (?:WARN|ERROR)\s+(.*)$", re.MULTILINE)


class UcxLog:
    """What nixl's UCX says from now on, at level info; nothing where the user has directed its log elsewhere."""

    def __init__(self) -> None:
        self._file = _log_file()
        self._begin = 0 if self._file is None else os.fstat(self._file).st_size

    def text(self) -> str:
        if self._file is None:
            return ""
        ctypes.CDLL(None).fflush(None)  # UCX's lines wait in the C library's buffer
        size = os.fstat(self._file).st_size - self._begin
        return os.pread(self._file, size, self._begin).decode(errors="replace")


def complaints_in(log: str) -> list[str]:
    """UCX's warnings and errors, which would otherwise have gone to the terminal."""
    return list(dict.fromkeys(COMPLAINT.findall(log)))


def route_in(log: str, agent: str) -> str:
    """Every ``transport/device`` of the agent's connections; "unknown" where they differ or UCX did not say.

    UCX names the wires of each kind of connection once, not of each peer.
    """
    kinds = {
        "+".join(dict.fromkeys(lane for lanes in LANES.findall(wires) for lane in lanes.split()))
        for name, wires in ENDPOINT.findall(log)
        if name == agent
    }
    return kinds.pop() if len(kinds) == 1 else "unknown"


@cache  # UCX reads these variables once, when it is loaded: the log belongs to the process
def _log_file() -> int | None:
    if any(name in os.environ for name in LOG_VARIABLES):
        return None
    return os.memfd_create("ucx.log")


@contextmanager
def loading() -> Iterator[None]:
    """While nixl loads its UCX: let it log to memory, and keep its libnl apart from that of the machine's verbs."""
    _hold_netlink()
    file = _log_file()
    log = {} if file is None else {"UCX_LOG_FILE": f"/proc/self/fd/{file}", "UCX_LOG_LEVEL": "info"}
    with environment(log):
        yield


def _hold_netlink() -> None:
    """Load the machine's libnl-route for good, where there is one (rdma-core's providers use it).

    Else it would first come with a verbs provider, enter its tables in the copy that is bundled with nixl's UCX, and go
    again with the provider: the process then dies by SIGSEGV when it ends (nixl 1.5.1, rdma-core 44).
    """
    with suppress(OSError):
        ctypes.CDLL("libnl-route-3.so.200")


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set ``variables`` for the length of the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check_options(settings: Mapping[str, str]) -> None:
    """Raises TransportError for an option that nixl's UCX does not know: it would ignore it. nixl's UCX is loaded."""
    library = ctypes.CDLL(_plugin())  # symbols looked up in it are those of its own libucp
    config = ctypes.c_void_p()
    if library.ucp_config_read(None, None, ctypes.byref(config)) != 0:
        raise TransportError("transport.name=nixl: its UCX cannot read its configuration; are UCX_* variables wrong?")
    refused = [
        f"{name}={value}"
        for name, value in settings.items()
        if library.ucp_config_modify(config, name.encode(), value.encode()) != 0
    ]
    library.ucp_config_release(config)
    if refused:
        raise TransportError(
            f"transport.name=nixl: its UCX refuses {', '.join(refused)} (fabric.tls, fabric.net_devices, fabric.ucx)"
        )


def _plugin() -> str:
    """The file of nixl's UCX plug-in, which this process has loaded."""
    maps = Path("/proc/self/maps").read_text()
    found = re.search(r"(/\S*libplugin_UCX\S*)$", maps, re.MULTILINE)
    if found is None:
        raise TransportError("transport.name=nixl: nixl has not loaded its UCX plug-in; choose transport=ucx")
    return found[1]
