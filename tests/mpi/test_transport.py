"""One test for every registered transport, at 2, 3 and 4 ranks: all bytes arrive, both ways at once, in any sizes."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xpyd.transport.registry import TRANSPORTS

PROGRAMS = Path(__file__).parent / "programs"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.mpi
@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("name", TRANSPORTS)
def test_spans_arrive_in_all_directions(mpirun: Run, name: str, num_ranks: int) -> None:
    done = mpirun(num_ranks, [str(PROGRAMS / "exchange.py"), name])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all spans verified") == num_ranks


@pytest.mark.mpi
def test_ucx_names_the_wire_it_uses(mpirun: Run) -> None:
    done = mpirun(2, [str(PROGRAMS / "exchange.py"), "ucx", "tcp"])
    assert done.returncode == 0, done.stderr
    assert "route tcp/" in done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("name", TRANSPORTS)
def test_scattered_blocks_move_pool_to_pool_and_planted_faults_are_caught(mpirun: Run, name: str) -> None:
    done = mpirun(3, ["-m", "mpi4py", str(PROGRAMS / "hand_off.py"), name])
    assert done.returncode == 0, done.stderr
    assert "pool verified" in done.stdout
    assert ("interface agrees" in done.stdout) == (name == "ucx")


@pytest.mark.mpi
@pytest.mark.parametrize("survivor", ["receiving", "sending"])
def test_ucx_notices_a_killed_peer(survivor: str) -> None:
    program = [sys.executable, str(PROGRAMS / "killed_peer.py"), survivor]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert re.search(rf"noticed: {survivor} \d+ bytes (from|to) rank 1 failed", done.stdout), done.stdout + done.stderr
    assert "closed" in done.stdout
    assert done.returncode == 0
