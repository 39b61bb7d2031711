"""CONTRIBUTING's table, followed to the letter: a transport, a scheduler, an arrival process and a model are added.

Each by its one file, its one YAML and its one line, in a copy of the sources; then one comparison uses all four.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TRANSPORT = '''"""MPI under another name."""

from xpyd.transport.mpi import MpiTransport


class ToyTransport(MpiTransport):
    name = "toy"
'''
SCHEDULER = '''"""Chunked prefill under another name."""

from xpyd.scheduler.chunked import ChunkedScheduler


class ToyScheduler(ChunkedScheduler):
    pass
'''
ARRIVALS = '''
@dataclass(frozen=True)
class Toy:
    """Every second request comes with the one before."""

    rate_rps: float

    def gaps_s(self, generator: np.random.Generator, num: int) -> NDArray[np.float64]:
        return np.where(np.arange(num) % 2 == 0, 2 / self.rate_rps, 0.0)


ARRIVALS:'''


def steps(kind: str) -> list[str]:
    """The cells of a row of CONTRIBUTING's table: file, YAML, line, test."""
    row = re.search(rf"^\| {kind} \|(.*)\|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert row is not None, f"CONTRIBUTING says nothing of a {kind}"
    return row[1].split(" | ")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("src", "conf", "experiments", "analysis", "launch"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    return tmp_path


def edit(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert text.count(before) == 1, f"{path}: {before!r} is there {text.count(before)} times"
    path.write_text(text.replace(before, after))


def write_yaml(copy: Path, group: str, based_on: str, **changes: object) -> None:
    content = yaml.safe_load((copy / "conf" / group / f"{based_on}.yaml").read_text())
    (copy / "conf" / group / "toy.yaml").write_text(yaml.safe_dump(content | changes))


def add_transport(copy: Path) -> None:
    file, settings, line, _ = steps("transport")
    assert "src/xpyd/transport/<name>.py" in file
    assert "conf/transport/<name>.yaml" in settings
    assert "`TRANSPORTS` in `transport/registry.py`" in line
    (copy / "src/xpyd/transport/toy.py").write_text(TRANSPORT)
    write_yaml(copy, "transport", "mpi", name="toy")
    edit(copy / "src/xpyd/transport/registry.py", 'TRANSPORTS = {"mpi"', 'TRANSPORTS = {"toy": "ToyTransport", "mpi"')


def add_scheduler(copy: Path) -> None:
    file, settings, line, _ = steps("scheduler")
    assert "src/xpyd/scheduler/<name>.py" in file
    assert "conf/scheduler/<name>.yaml" in settings
    assert "`SCHEDULERS` in `scheduler/registry.py`, and its name in `Policy`" in line
    (copy / "src/xpyd/scheduler/toy.py").write_text(SCHEDULER)
    write_yaml(copy, "scheduler", "chunked", policy="toy")
    registry = copy / "src/xpyd/scheduler/registry.py"
    edit(registry, '    "chunked": ChunkedScheduler,\n', '    "chunked": ChunkedScheduler,\n    "toy": ToyScheduler,\n')
    edit(registry, "\nSCHEDULERS:", "from xpyd.scheduler.toy import ToyScheduler\n\nSCHEDULERS:")
    edit(copy / "src/xpyd/scheduler/config.py", 'Policy = Literal["chunked"', 'Policy = Literal["toy", "chunked"')


def add_arrivals(copy: Path) -> None:
    file, settings, line, _ = steps("arrival process or length distribution")
    assert "src/xpyd/workload/arrivals.py" in file
    assert "conf/workload/<name>.yaml" in settings
    assert "its registry there, and its name in the `Literal` above" in line
    path = copy / "src/xpyd/workload/arrivals.py"
    edit(path, "\nARRIVALS:", ARRIVALS)
    edit(path, '    "poisson": Poisson,\n', '    "poisson": Poisson,\n    "toy": Toy,\n')
    edit(path, 'kind: Literal["poisson"', 'kind: Literal["toy", "poisson"')
    (copy / "conf/workload/toy.yaml").write_text("defaults: [fixed, _self_]\narrival: {kind: toy, rate_rps: 40.0}\n")


def add_model(copy: Path) -> None:
    file, settings, _, _ = steps("model shape")
    assert "none" in file
    assert "conf/model/<name>.yaml" in settings
    write_yaml(copy, "model", "micro", name="toy", num_layers=3)


@pytest.mark.long
@pytest.mark.mpi
def test_what_is_added_by_the_table_works(copy: Path, tmp_path: Path) -> None:
    for add in (add_transport, add_scheduler, add_arrivals, add_model):
        add(copy)
    toys = ["transport=toy", "scheduler=toy", "workload=toy", "model=toy"]
    small = ["placement.allow_shared_node=true", "workload.num_requests=4", "workload.input_len=40"]
    load = ["workload.output_len=5", "num_pairs=1", "null_control=false", "faults.detect_s=30"]
    command = [sys.executable, "-m", "experiments.compare", *toys, *small, *load, f"run.root={tmp_path}/runs"]
    environment = {**os.environ, "PYTHONPATH": f"{copy}/src:{copy}"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "runs" / "compare").iterdir()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert [config["transport"]["name"], config["scheduler"]["policy"], config["model"]["name"]] == ["toy"] * 3
    requests = pd.read_parquet(folder / "requests.parquet")
    due = requests[requests["block"] == 0].sort_values("request_id")["arrival_offset_ns"].diff().dropna().tolist()
    assert due == [0, 50_000_000, 0]
    assert len(pd.read_parquet(folder / "transfers.parquet")) == 4
    assert "over toy" in done.stderr
    assert (folder / "report.html").exists()
    command = [
        sys.executable,
        "-m",
        "experiments.simulate",
        *toys[1:],
        *small[1:],
        "num_pairs=1",
        f"run.root={tmp_path}/runs",
    ]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
