"""UCX's own benchmark, ucx_perftest, with the same UCX settings: what UCX can do without Python.

It sends one buffer over and over, which stays in the processor's cache, where a pool of KV does not.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.transfer.carriers import TIMEOUT_S, Carrier, CarrierError
from benchmarks.transfer.cases import Case, Work
from xpyd.units import MIB

WARM_UP_MESSAGES = 4
RETRY_S = 0.05


def find_perftest() -> tuple[str, dict[str, str]] | None:
    """The program (the UCX wheel's, else that on PATH, Debian's ucx-utils) and what it needs in its environment."""
    try:
        import libucx
    except ImportError:
        pass
    else:
        home = Path(libucx.__file__).parent
        if (home / "bin" / "ucx_perftest").exists():
            return str(home / "bin" / "ucx_perftest"), {"LD_LIBRARY_PATH": str(home / "lib")}
    found = shutil.which("ucx_perftest")
    return (found, {}) if found else None


class PerftestCarrier(Carrier):
    """``ucx_perftest -t tag_bw`` with messages of a piece's size and as many in flight; one pair, one request."""

    name = "ucx_perftest"
    verifiable: ClassVar[bool] = False

    def __init__(self, comm: Any, peer: int, host: str, settings: Mapping[str, str]) -> None:
        """``host``: the destination's address; ``settings``: UCX options without UCX_. Raises CarrierError."""
        found = find_perftest()
        if found is None:
            raise CarrierError("no ucx_perftest here: pip install 'xpyd[embedded]', or apt-get install ucx-utils")
        self._program, extra = found
        self._comm, self._peer, self._host = comm, peer, host
        self._environment = {**os.environ, **extra, **{f"UCX_{key}": value for key, value in settings.items()}}

    def takes(self, case: Case, num_peers: int) -> bool:
        return num_peers == 1 and case.num_requests == 1

    def send(self, work: Work) -> None:
        """Start the client, again until the server listens; tell the destination the rate that it measured."""
        port = self._comm.recv(source=self._peer)
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            done = subprocess.run(
                [self._program, self._host, *_options(work.case, port)],
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
            if done.returncode == 0 or time.monotonic() > deadline:
                break
            time.sleep(RETRY_S)
        self._comm.send(_bytes_per_s(done.stdout) or done.stderr, dest=self._peer)

    def receive(self, work: Work) -> float:
        """Serve one client. Raises CarrierError where it measured nothing."""
        port = _free_port(self._host)
        server = subprocess.Popen(
            [self._program, *_options(work.case, port)],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._comm.send(port, dest=self._peer)
            found = self._comm.recv(source=self._peer)
            if isinstance(found, str):
                raise CarrierError(f"ucx_perftest measured nothing: {found.strip()[-300:]}")
            server.wait(TIMEOUT_S)
        finally:
            server.kill()
            server.wait()
        return work.case.total_bytes / float(found)


def _options(case: Case, port: int) -> list[str]:
    size, flying = case.pattern.piece_bytes, case.pattern.num_flying
    messages = ["-s", str(size), "-O", str(flying), "-n", str(case.num_pieces), "-w", str(WARM_UP_MESSAGES)]
    return ["-t", "tag_bw", *messages, "-p", str(port), "-f"]


def _bytes_per_s(output: str) -> float | None:
    """The overall rate of its last line, which is in MiB per second; None where there is none."""
    rows: Sequence[list[str]] = [line.split() for line in output.splitlines()]
    final = [row for row in rows if row and (row[0] == "Final:" or row[0].isdigit())]
    return float(final[-1][-3]) * MIB if final else None


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
