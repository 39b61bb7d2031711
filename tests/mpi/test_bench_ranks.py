"""The ranks of the transfer benchmark on loopback: every carrier moves real bytes and is checked, on 2 and 4 ranks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.engine import own
from benchmarks.transfer.cases import LAYER_BYTES
from benchmarks.transfer.order import Missing, Order, Sample, read_samples
from benchmarks.transfer.paths import WIRES

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.mpi
@pytest.mark.parametrize("num_sides", [1, 2])
def test_every_carrier_is_measured_on_loopback(mpirun: Run, tmp_path: Path, num_sides: int) -> None:
    settings = {wire.name: wire.fabric_settings() for wire in WIRES}["loopback"]
    order = Order(
        path="loopback",
        host="127.0.0.1",
        num_sides=num_sides,
        layers_bytes=LAYER_BYTES,
        tls=tuple(settings["tls"]),
        device="lo",
        ucx=settings["ucx"],
        message_bytes=settings["message_bytes"],
        seconds=0.0,
        min_repeats=1,
        quick=True,
        carriers=("socket", "ucx_perftest", "ucx", "mpi"),
        samples=str(tmp_path / "samples.jsonl"),
    )
    order.save(tmp_path / "order.json")
    done = mpirun(2 * num_sides, ["-m", "mpi4py", "-m", "benchmarks.transfer.ranks", str(tmp_path / "order.json")])
    assert done.returncode == 0, done.stderr
    found = list(read_samples(Path(order.samples)))
    assert [row for row in found if isinstance(row, Missing)] == []
    samples = [row for row in found if isinstance(row, Sample)]
    expected = {"socket 256 KiB", "socket 1 MiB", "socket 8 MiB", "ucx", "mpi"}
    assert {row.carrier for row in samples} == expected | ({"ucx_perftest"} if num_sides == 1 else set())
    assert {row.repeat for row in samples} == {0}
    assert {row.num_bytes for row in samples} == {LAYER_BYTES * num_sides**2}


@pytest.mark.mpi
@pytest.mark.parametrize("client", own.CLIENTS)
def test_a_workers_own_work_is_measured_between_two_ranks(mpirun: Run, tmp_path: Path, client: str) -> None:
    """Every batch, on an MPI as runs have it; over TCP beside a plain socket. No figure is checked here."""
    (tmp_path / own.ORDER).write_text(
        json.dumps({"model": "tiny", "client": client, "dtype": "float32", "num_threads": 1, "num_rounds": 1})
    )
    done = mpirun(2, ["-m", "mpi4py", "-m", "benchmarks.engine.own", "--run-folder", str(tmp_path)], 120)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / own.FOUND).read_text())
    assert [row["batch"] for row in rows] == list(own.BATCHES)
    assert all(0 < row["beside_s"] < row["step_s"] for row in rows)
    assert all((row["bare_send_s"] is not None) == client.startswith("TCP") for row in rows)
