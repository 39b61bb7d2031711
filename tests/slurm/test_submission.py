"""Submission on real nodes: a sweep from the command line to DONE, time limits, and jobs that go on after a loss."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from analysis.load import load_run
from tests.mpi.test_experiments import tables, tokens_by_arm
from tests.slurm.conftest import VirtualCluster, wait_for
from tests.slurm.test_compare import SMALL

# What a shell, Hydra's paths and sbatch's patterns could each misread.
HOSTILE = "it's $(touch pwned); `touch pwned` & %j"
SLOW = 240.0  # seconds: a bound for other programs on the machine, never a pause


@pytest.fixture(autouse=True)
def python(cluster: VirtualCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.env, "XPYD_PYTHON", sys.executable)


def compare(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "experiments.compare", *SMALL, "launch=slurm", "launch.slurm.poll_s=0.2", *overrides]


def submit(cluster: VirtualCluster, *overrides: str) -> tuple[str, Path]:
    """The job id and run folder of a comparison."""
    _, job, _, folder = cluster.run(*compare(*overrides), timeout=SLOW).strip().split("  ")
    return job, Path(folder)


def said(folder: Path, job: str) -> str:
    path = folder / f"job-{job}.out"
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def outlasting(cluster: VirtualCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A run that is too long for its limit. Slurm looks at limits twice a minute, so it goes on beside other tests.

    The limit is set when the first block has ended, to a minute or two from then: wherever Slurm looks next, it warns.
    """
    root = tmp_path_factory.mktemp("outlasting")
    options = ["launch.slurm.stop_before_s=120", "launch.slurm.requeue=false", f"run.root={root}"]
    idle = "workload.arrival.rate_rps=2"  # leaves the cores to the tests that run beside it
    job, folder = submit(cluster, "num_pairs=500", idle, *options)
    wait_for(lambda: "block 1/" in said(folder, job), "block 1", SLOW)
    *hours, minutes, _ = (int(part) for part in cluster.job(job, "RunTime")[0].split(":"))
    cluster.run("scontrol", "update", f"jobid={job}", f"TimeLimit={60 * hours[0] + minutes + 2}")
    yield job, folder
    cluster.run("scancel", job)


@pytest.mark.long
@pytest.mark.usefixtures("outlasting")
def test_a_sweep_goes_to_its_end_and_is_skipped_then(cluster: VirtualCluster, tmp_path: Path) -> None:
    root = tmp_path / HOSTILE
    sweep = [*compare("-m", "workload.seed=1,2", "launch.wait=true"), f'run.root="{root}"']
    output = cluster.run(*sweep, timeout=SLOW)
    folders = list((root / "compare").iterdir())
    assert len(folders) == 2
    for folder in folders:
        arms = tokens_by_arm(tables(folder))
        assert (arms["colocated"] == arms["disaggregated"]).all()
        assert (folder / "job.sh").exists()
        assert f"results: {folder}" in output
    assert "workload.seed=1" in output
    assert not list(tmp_path.rglob("pwned"))
    again = cluster.run(*sweep, timeout=SLOW)
    assert again.count("done already: skipped") == 2
    assert sorted((root / "compare").iterdir()) == sorted(folders)
    assert all(len(list(folder.glob("job-*.out"))) == 1 for folder in folders)


def test_a_dry_run_asks_slurm(cluster: VirtualCluster, tmp_path: Path) -> None:
    script = cluster.run(*compare("launch.dry_run=true", f"run.root={tmp_path}"), timeout=SLOW)
    assert script.startswith("#!/bin/sh\n")
    refused = ["launch.dry_run=true", "launch.slurm.partition=nosuch", f"run.root={tmp_path}"]
    assert "invalid partition" in cluster.run(*compare(*refused), code=2, timeout=SLOW)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_a_run_goes_on_after_its_limit_and_after_a_lost_node(cluster: VirtualCluster, tmp_path: Path) -> None:
    """Three attempts, each from the block after the last that ended; every block counts once, its tokens are equal."""
    job, folder = submit(cluster, "num_pairs=3", f"run.root={tmp_path}")
    wait_for(lambda: "block 2/9" in said(folder, job), "block 2", SLOW)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    _restart(cluster, job)
    assert "stopped on request" in said(folder, job)
    wait_for(lambda: "block " in said(folder, job).partition("resumed, attempt 1")[2], "a block of attempt 1", SLOW)
    _, lost = json.loads((folder / "environment.json").read_text())["attempts"][-1]["hosts"]  # on any two nodes
    cluster.call("kill", lost)
    try:
        # Slurm notices by itself after SlurmdTimeout (see test_launch); an operator is faster.
        cluster.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=power")
        _restart(cluster, job, restarts=2)
        wait_for(lambda: (folder / "DONE").exists(), "the end of the run", SLOW)
    finally:
        cluster.call("boot", lost)
    begun = [int(done) for done in re.findall(r"resumed, attempt [12]: (\d+) of 9 blocks", said(folder, job))]
    assert 2 <= begun[0] < begun[1] < 9
    assert [said(folder, job).count(f"block {number}/9") for number in range(1, 10)] == [1] * 9
    attempts = json.loads((folder / "environment.json").read_text())["attempts"]
    assert [lost in attempt["hosts"] for attempt in attempts][1:] == [True, False]
    found = tables(folder)
    assert sorted(found["blocks"]["block"]) == list(range(9))
    assert (found["requests"].groupby("block").size() == 6).all()
    arms = tokens_by_arm(found)
    assert arms["colocated"].shape == (3 * 6 * 6, 4)
    assert (arms["colocated"] == arms["disaggregated"]).all()


def _restart(cluster: VirtualCluster, job: str, restarts: int = 1) -> None:
    """Wait for the requeue, and shorten Slurm's pause of two minutes."""
    wait_for(lambda: cluster.job(job, "JobState", "Restarts") == ["PENDING", str(restarts)], "the requeue", SLOW)
    # Not at once: nodes refuse a job's credential made in the second in which they revoked the last one.
    cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now+3")


@pytest.mark.long
def test_a_run_stops_in_order_before_its_time_limit(outlasting: tuple[str, Path]) -> None:
    job, folder = outlasting
    wait_for(lambda: "partial results" in said(folder, job) or "exit code" in said(folder, job), "its end", SLOW)
    assert "stopped on request: no further blocks" in said(folder, job)
    assert "SIGTERM" not in said(folder, job)
    run = load_run(folder, allow_partial=True)
    assert run.partial
    blocks = run.tables["blocks"]
    assert 1 <= len(blocks) < 1500
    ended = run.tables["stages"].merge(blocks[["block"]], on="block")
    assert (ended[ended["stage"] == "finished"].groupby("block").size() == 6).all()
