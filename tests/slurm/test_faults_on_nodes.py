"""Nodes that lose their link or their power in the middle of a run: noticed, named, and nothing measured is lost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch.virtual_cluster.life import open_cluster
from tests.mpi.test_experiments import run_folder, tables
from tests.mpi.test_faults import NUM_REQUESTS, SERVE, ends
from tests.slurm.checks import SMALL
from tests.slurm.conftest import ROOT, VirtualCluster
from xpyd.faults import EXIT_RANKS_LOST
from xpyd.streams import merge

PATIENCE_S = 240  # a few seconds where the machine has nothing else to do
FORWARDED = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")


@pytest.fixture
def link_of_n2(cluster: VirtualCluster) -> Iterator[Callable[[bool], None]]:
    """Takes the link of n2 down, and up again."""
    nodes = open_cluster(cluster.folder)

    def set_link(up: bool) -> None:
        nodes.set_link("n2", up)

    yield set_link
    set_link(True)


@pytest.mark.long
def test_a_link_that_goes_down_costs_a_rank_and_no_request(
    cluster: VirtualCluster, tmp_path: Path, link_of_n2: Callable[[bool], None]
) -> None:
    """Rank 2 (n2) prefills, as rank 1 (n1) does. When the link is mended it comes back, is told, and leaves."""
    job = cluster.start("run", *serve_through_mpirun(tmp_path), "placement=2p1d", "faults=retry")
    try:
        wait_until(job, lambda: bool(list(tmp_path.glob("serve/*/streams/requests.*"))), "a block begins")
        folder = run_folder(tmp_path, "serve")
        link_of_n2(False)
        wait_until(job, lambda: num_rows(folder, "losses") > 0, "the loss is noticed")
        link_of_n2(True)
        errors = job.communicate(timeout=PATIENCE_S)[1]
    finally:
        job.kill()
    assert job.returncode == EXIT_RANKS_LOST, errors
    assert "rank 2 (prefill on n2) is lost" in errors
    found = tables(folder)
    [loss] = found["losses"].itertuples()
    assert (loss.rank, loss.role, loss.node) == (2, "prefill", "n2")
    assert loss.reason.startswith("nothing heard of it for") or "cannot reach it" in loss.reason
    assert (ends(found["stages"]) == "finished").all()
    assert len(found["tokens"]) == NUM_REQUESTS * 24, "no token twice, none missing"
    retried = found["stages"].query("stage == 'retried'")
    assert len(retried) == loss.num_requests
    assert retried["reason"].str.contains(r"rank 2 \(prefill on n2\) is lost").all()


@pytest.mark.long
def test_a_node_that_dies_ends_the_job_whose_rows_can_be_analysed(
    cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("XPYD_PYTHON", sys.executable), ("XPYD_LOG_DIR", str(tmp_path / "logs"))):
        monkeypatch.setitem(cluster.env, name, value)
    output = tmp_path / "job.out"
    sizes = ["-w", "n3,n4", "-N", "2", "--no-requeue", f"--output={output}"]
    settings = [s for s in SMALL if not s.startswith(("num_pairs", "faults"))]
    job = cluster.submit(
        ROOT, *sizes, "launch/slurm.sbatch", "compare", *settings, "num_pairs=60", f"run.root={tmp_path}"
    )
    deadline = time.monotonic() + PATIENCE_S
    while not any(num_rows(folder, "blocks") > 1 for folder in tmp_path.glob("compare/*")):  # a pair has both arms
        assert time.monotonic() < deadline, output.read_text() if output.exists() else "it has not begun"
        time.sleep(0.05)
    cluster.call("kill", "n4")
    try:
        assert cluster.finish(job, timeout=PATIENCE_S) in ("FAILED", "NODE_FAIL")
        assert cluster.job(job, "ExitCode") != ["0:0"]
    finally:
        cluster.call("boot", "n4")
    said = output.read_text()
    assert "rank 2 (decode on n4) is lost" in said or "rank 2 (colocated on n4) is lost" in said, said
    folder = run_folder(tmp_path, "compare")
    assert not (folder / "DONE").exists()
    [loss] = merge(folder, "losses").to_pandas().itertuples()
    assert (loss.rank, loss.node) == (2, "n4")
    read = [sys.executable, "-m", "analysis.report", "--allow-partial", "--print", str(folder)]
    shown = subprocess.run(read, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert shown.returncode == 0, shown.stderr
    assert "partial" in shown.stdout


def serve_through_mpirun(root: Path) -> list[str]:
    """A serve run from the login node, as a user types it, that survives a dead rank."""
    agent = ["--prtemca", "plm", "ssh", "--prtemca", "plm_ssh_agent", str(ROOT / "launch/agent")]
    forwarded = [part for name in FORWARDED for part in ("-x", name)]
    wires = ["--mca", "btl_tcp_if_include", "eth0"]
    options = ",".join(['--host,"n1:2,n2:1,n3:1"', *agent, *forwarded, *wires])
    mpirun = Path(sys.prefix) / "bin" / "mpirun"
    start = ["launch=mpirun", f"launch.mpirun={mpirun}", f"launch.args=[{options}]"]
    settings = [s for s in SERVE if not s.startswith(("placement", "faults"))]
    return [sys.executable, "-m", "experiments.serve", *start, *settings, f"run.root={root}"]


def num_rows(folder: Path, table: str) -> int:
    """Rows of a table of a run that is going on."""
    return int(merge(folder, table).num_rows) if list(folder.glob(f"streams/{table}.*")) else 0


def wait_until(job: subprocess.Popen[str], condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.02)
