"""Ranks that die or stop in a run that a user started: it says which, ends or goes on by policy, and keeps its rows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.soak.report import JobResult
from benchmarks.soak.start import run_job
from benchmarks.soak.trial import Order
from tests.mpi.test_experiments import ROOT, run_folder, tables
from xpyd.faults import EXIT_RANKS_LOST
from xpyd.streams import merge

NUM_REQUESTS = 40
SERVE = [
    "model=micro",
    "placement.allow_shared_node=true",
    "fabric=tcp",
    f"workload.num_requests={NUM_REQUESTS}",
    "workload.input_len=200",
    "workload.output_len=24",
    "workload.arrival.rate_rps=20",
    "faults.detect_s=2",
    "faults.beat_interval_s=0.25",
    "run.drain_timeout_s=20",
    "run.report=false",
]


def serve_and_hurt(root: Path, number: signal.Signals, rank: int, *overrides: str) -> tuple[int, str, Path]:
    """The exit code, stderr and folder of a run, a rank of which gets a signal as soon as requests are under way."""
    command = [sys.executable, "-m", "experiments.serve", *SERVE, f"run.root={root}", *overrides]
    job = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    try:
        while not list(root.glob("serve/*/streams/requests.*")):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline, "no block begins"
            time.sleep(0.02)
        folder = run_folder(root, "serve")
        os.kill(process_of(folder, rank), number)
        errors = job.communicate(timeout=90)[1]
    finally:
        job.kill()
    while processes(folder) and time.monotonic() < deadline + 60:  # mpirun may return before the last rank
        time.sleep(0.1)
    assert processes(folder) == {}, "nothing is left behind"
    return job.returncode, errors, folder


def processes(folder: Path) -> dict[int, int]:
    """The ranks of a run that are there, with their processes."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder) in (entry / "cmdline").read_text():
                rank = re.search(r"OMPI_COMM_WORLD_RANK=(\d+)", (entry / "environ").read_text())
                if rank:
                    found[int(rank[1])] = int(entry.name)
        except OSError:  # it has ended since
            continue
    return found


def process_of(folder: Path, rank: int) -> int:
    return processes(folder)[rank]


def ends(stages: pd.DataFrame) -> pd.Series[str]:
    """How every request ended, by its id, as the client says; each has one end."""
    mine = stages[stages["stage"].isin(["finished", "failed"]) & (stages["rank"] == 0)].set_index("request_id")["stage"]
    assert sorted(mine.index) == list(range(NUM_REQUESTS))
    return mine


@pytest.mark.mpi
def test_a_killed_prefill_rank_is_replaced_by_the_others(tmp_path: Path) -> None:
    code, errors, folder = serve_and_hurt(tmp_path, signal.SIGKILL, 1, "placement=2p1d", "faults=retry")
    assert code == EXIT_RANKS_LOST, errors
    assert "rank 1 (prefill on" in errors
    found = tables(folder)
    assert found["losses"][["rank", "role"]].to_numpy().tolist() == [[1, "prefill"]]
    assert (ends(found["stages"]) == "finished").all()
    assert len(found["tokens"]) == NUM_REQUESTS * 24, "no token twice, none missing"
    retried = found["stages"].query("stage == 'retried'")
    assert len(retried) == found["losses"]["num_requests"].sum()
    assert retried["reason"].str.contains("rank 1 (prefill", regex=False).all()


@pytest.mark.long
@pytest.mark.mpi
def test_the_other_pairs_outlive_a_stopped_decode_rank(tmp_path: Path) -> None:
    code, errors, folder = serve_and_hurt(tmp_path, signal.SIGSTOP, 2, "placement=1p2d", "faults=go_on")
    assert code == EXIT_RANKS_LOST, errors
    assert "rank 2 (decode on" in errors
    found = tables(folder)
    [loss] = found["losses"].itertuples()
    assert loss.rank == 2
    assert loss.reason.startswith("nothing heard of it for") or "cannot reach it" in loss.reason
    told = found["stages"].query("stage == 'failed' and rank == 0")
    assert len(told) == loss.num_requests > 0
    assert told["reason"].str.contains(r"rank 2 \(decode on .*\) is lost.*; at rank 1 \(prefill on .*\): \w+").all()
    assert (ends(found["stages"]) == "finished").sum() == NUM_REQUESTS - loss.num_requests > 0


@pytest.mark.long
@pytest.mark.mpi
def test_a_rank_that_stops_after_the_last_token_is_lost_like_any_other(tmp_path: Path) -> None:
    """By its silence, not by the barrier; and the block after it is played by the others."""
    order = Order("stop", 1, 2, ((2,), ()), late=True, detect_s=2.0, beat_interval_s=0.25)
    result = JobResult.read(order, run_job(order, tmp_path / "job"), tmp_path / "job")
    assert result.exit_code == EXIT_RANKS_LOST, result.errors
    [strike] = result.strikes
    assert strike.reason.startswith("nothing heard of it for")
    assert [outcome.num_finished for outcome in result.outcomes] == [order.num_requests] * 2


@pytest.mark.long
@pytest.mark.mpi
def test_requests_that_wait_for_blocks_in_quarantine_fail(tmp_path: Path) -> None:
    """Sends over mpi to stopped ranks never end: most of a small pool is lost to them, and prompts wait behind it."""
    order = Order("stop", 1, 5, ((2, 3, 4, 5),), transport="mpi", num_kv_blocks=24, detect_s=2.0, beat_interval_s=0.25)
    result = JobResult.read(order, run_job(order, tmp_path / "job"), tmp_path / "job")
    assert result.exit_code == EXIT_RANKS_LOST, result.errors
    [outcome] = result.outcomes
    assert outcome.num_finished + outcome.num_failed == order.num_requests
    assert outcome.num_failed
    assert (outcome.num_unexplained, outcome.num_unnamed) == (0, 0)


@pytest.mark.mpi
def test_by_default_a_lost_rank_ends_the_run_whose_rows_can_be_read(tmp_path: Path) -> None:
    code, errors, folder = serve_and_hurt(tmp_path, signal.SIGSTOP, 2, "placement=1p1d")
    assert code not in (0, EXIT_RANKS_LOST), errors
    assert "rank 2 (decode on" in errors
    assert "(faults.policy=end)" in errors
    assert not (folder / "DONE").exists()
    kept = merge(folder, "stages").to_pandas()
    assert (ends(kept) == "failed").any()
    assert kept.query("stage == 'failed' and rank == 0")["reason"].str.contains("rank 2 (decode on", regex=False).all()
    assert merge(folder, "losses").to_pandas()["rank"].tolist() == [2]
