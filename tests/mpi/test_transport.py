"""One test for every registered transport and way, at 2 to 4 ranks: all bytes arrive, from all at once, in any size."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from xpyd.transport.registry import TRANSPORTS, transport_class

PROGRAMS = Path(__file__).parent / "programs"
Run = Callable[..., subprocess.CompletedProcess[str]]
NIXL = pytest.mark.skipif(find_spec("nixl_cu12") is None, reason="no nixl: pip install 'xpyd[nixl]'")
MARKS = {"nixl": (NIXL,)}
NAMES = [pytest.param(name, marks=MARKS.get(name, ())) for name in TRANSPORTS]
WAYS = [
    pytest.param(name, way, num_ranks, marks=MARKS.get(name, ()))
    for name in TRANSPORTS
    for way, num_ranks in (("two_sided", 2), ("two_sided", 4), ("one_sided_read", 4), ("one_sided_write", 2))
    if getattr(transport_class(name).capabilities, way)
]


@pytest.mark.mpi
@pytest.mark.parametrize(("name", "way", "num_ranks"), WAYS)
def test_spans_arrive_in_all_directions(mpirun: Run, name: str, way: str, num_ranks: int) -> None:
    done = mpirun(num_ranks, [str(PROGRAMS / "exchange.py"), name, way])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all spans verified") == num_ranks


@pytest.mark.mpi
@NIXL
def test_two_ucx_libraries_and_mpi_live_in_one_process(mpirun: Run) -> None:
    done = mpirun(2, [str(PROGRAMS / "exchange.py"), "ucx,nixl,mpi", "two_sided,one_sided_read,two_sided"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all spans verified") == 2 * 3


@pytest.mark.mpi
@pytest.mark.parametrize(("name", "way"), [("ucx", "two_sided"), pytest.param("nixl", "one_sided_read", marks=NIXL)])
def test_the_wire_in_use_is_named(mpirun: Run, name: str, way: str) -> None:
    done = mpirun(3, [str(PROGRAMS / "exchange.py"), name, way, "tcp"])
    assert done.returncode == 0, done.stderr
    routes = re.findall(r"route (\S+)", done.stdout)
    assert len(routes) == 3
    assert all(lane.startswith("tcp/") for route in routes for lane in route.split("+")), routes


@pytest.mark.mpi
@pytest.mark.parametrize("name", NAMES)
def test_scattered_blocks_move_pool_to_pool_and_planted_faults_are_caught(mpirun: Run, name: str) -> None:
    done = mpirun(3, ["-m", "mpi4py", str(PROGRAMS / "hand_off.py"), name])
    assert done.returncode == 0, done.stderr
    assert "pool verified" in done.stdout
    assert ("interface agrees" in done.stdout) == transport_class(name).capabilities.takes_fabric


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("name", "doing"),
    [
        ("ucx", "receiving"),
        ("ucx", "sending"),
        pytest.param("nixl", "reading", marks=NIXL),
        pytest.param("nixl", "writing", marks=NIXL),
    ],
)
def test_a_killed_peer_is_noticed_and_named(name: str, doing: str) -> None:
    program = [sys.executable, str(PROGRAMS / "killed_peer.py"), name, doing]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60)
    assert re.search(rf"noticed: {doing} \d+ bytes (from|to|of) rank 1 failed", done.stdout), done.stdout + done.stderr
    assert "closed" in done.stdout
    assert done.returncode == 0
