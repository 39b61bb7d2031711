"""The main job for real: every launch style, rank counts, arms, transports, and the ways a job can go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pandas as pd
import pytest

from xpyd.run_dir import RunDir

ROOT = Path(__file__).parents[2]
SMALL = [
    "model=micro",
    "placement.allow_shared_node=true",
    "workload.num_requests=6",
    "workload.input_len=40",
    "workload.output_len=6",
    "workload.arrival.rate_rps=40",
    "num_pairs=1",
    "run.report=false",
    "run.drain_timeout_s=20",
    "faults.detect_s=30",  # a crowded machine is no fault
]
Run = Callable[..., subprocess.CompletedProcess[str]]


def plain(experiment: str, *overrides: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"experiments.{experiment}", *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    assert (folder / "DONE").exists(), f"{folder} is partial"
    return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


def run_folder(root: Path, experiment: str) -> Path:
    folders = list((root / experiment).iterdir())
    assert len(folders) == 1, folders
    return folders[0]


def tokens_by_arm(found: dict[str, pd.DataFrame]) -> dict[str, Any]:
    merged = found["tokens"].merge(found["blocks"][["block", "pair", "arm"]], on="block")
    merged = merged.sort_values(["pair", "request_id", "index"])
    return {arm: rows[["pair", "request_id", "index", "token_id"]].to_numpy() for arm, rows in merged.groupby("arm")}


@pytest.mark.mpi
def test_both_arms_give_the_same_tokens(tmp_path: Path) -> None:
    """With the defaults; test_handoff.py plays every transport and mode."""
    done = plain("compare", *SMALL, "transfer.verify=always", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = tables(run_folder(tmp_path, "compare"))
    arms = tokens_by_arm(found)
    assert arms["colocated"].shape == (36, 4)
    assert (arms["colocated"] == arms["disaggregated"]).all()
    assert (arms["colocated"] == arms["null"]).all()
    transfers = found["transfers"]
    assert len(transfers) == 6
    assert transfers["verified"].all()
    block = found["blocks"].set_index("arm").loc["disaggregated"]
    assert block["ledger_bytes"] == block["transport_bytes"] == transfers["payload_bytes"].sum() > 0


@pytest.mark.mpi
def test_back_pressure_and_preemption_change_no_token(tmp_path: Path) -> None:
    """A pool for one whole request: offers wait, running ones are recomputed, tokens stay the same."""
    tight = ["workload.num_requests=12", "workload.output_len=128", "workload.arrival.rate_rps=20000"]  # all at once
    done = plain("compare", *SMALL, *tight, "scheduler.num_kv_blocks=16", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    found = tables(run_folder(tmp_path, "compare"))
    arms = tokens_by_arm(found)
    assert (arms["colocated"] == arms["disaggregated"]).all()
    preempted = (
        found["steps"].merge(found["blocks"][["block", "arm"]], on="block").groupby("arm")["num_preempted"].sum()
    )
    assert preempted["disaggregated"] > 0
    assert preempted["colocated"] > 0


@pytest.mark.mpi
def test_under_mpirun(mpirun: Run, tmp_path: Path) -> None:
    done = mpirun(5, ["-m", "experiments.compare", *SMALL, "placement=2p2d", f"run.root={tmp_path}"], 120)
    assert done.returncode == 0, done.stderr
    found = tables(run_folder(tmp_path, "compare"))
    arms = tokens_by_arm(found)
    assert (arms["colocated"] == arms["disaggregated"]).all()
    steps = found["steps"].merge(found["blocks"][["block", "arm"]], on="block")
    used = steps.groupby("arm")["rank"].nunique()
    assert used["colocated"] == used["disaggregated"] == 4, "equal resources in both arms"


@pytest.mark.mpi
def test_one_arm_on_two_ranks(mpirun: Run, tmp_path: Path) -> None:
    overrides = [o for o in SMALL if not o.startswith("num_pairs")]
    done = mpirun(2, ["-m", "experiments.serve", *overrides, "placement=1c", f"run.root={tmp_path}"], 120)
    assert done.returncode == 0, done.stderr
    stages = tables(run_folder(tmp_path, "serve"))["stages"]
    assert (stages["stage"] == "finished").sum() == 6
    assert "transfer_begin" not in set(stages["stage"])


@pytest.mark.mpi
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_a_wrong_number_of_ranks_is_refused(mpirun: Run, tmp_path: Path, num_ranks: int) -> None:
    done = mpirun(num_ranks, ["-m", "experiments.compare", *SMALL, f"run.root={tmp_path}"], 60)
    assert done.returncode != 0
    assert f"needs 3 ranks (1 client + 2 workers), {num_ranks} were started" in done.stderr


@pytest.mark.mpi
def test_prefill_and_decode_on_one_node_are_refused(tmp_path: Path) -> None:
    done = plain("compare", *SMALL, "placement.allow_shared_node=false", f"run.root={tmp_path}")
    assert done.returncode != 0
    assert "placement.allow_shared_node=true" in done.stderr
    assert "nothing was measured" in done.stderr
    assert not list((tmp_path / "compare").iterdir()), "no folder keeps the name of a run that was refused"


@pytest.mark.mpi
def test_a_missing_device_is_refused(tmp_path: Path) -> None:
    done = plain("compare", *SMALL, "transport=ucx", "fabric.net_devices=[nosuch0]", f"run.root={tmp_path}", timeout=60)
    assert done.returncode != 0
    assert "nosuch0" in done.stderr
    assert "fabric.net_devices" in done.stderr


@pytest.mark.mpi
def test_an_error_on_one_rank_ends_all(mpirun: Run, tmp_path: Path) -> None:
    program = str(Path(__file__).parent / "programs" / "fail_on_rank_1.py")
    done = mpirun(3, [program, *SMALL, f"run.root={tmp_path}"], 60)
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr
    assert "rank 1 failed" in done.stderr


def running(line_begin: str, *overrides: str) -> tuple[subprocess.Popen[str], IO[str]]:
    """A comparison that has just printed such a line, and the rest of its stderr."""
    job = subprocess.Popen(
        [sys.executable, "-m", "experiments.compare", *SMALL, *overrides], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    assert job.stderr is not None
    for line in job.stderr:
        if line.startswith(line_begin):
            break
    return job, job.stderr


@pytest.mark.long
@pytest.mark.mpi
def test_sigterm_keeps_what_was_measured(tmp_path: Path) -> None:
    job, errors = running("block 4/", "num_pairs=500", f"run.root={tmp_path}")
    job.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    errors.read()
    assert job.wait(timeout=60) == 128 + signal.SIGTERM
    assert time.monotonic() - begun < 60
    folder = run_folder(tmp_path, "compare")
    assert not (folder / "DONE").exists()
    import pyarrow as pa

    with pa.OSFile(str(folder / "streams" / "blocks.attempt0.rank0.arrow")) as file:
        reader = pa.ipc.open_stream(file)
        assert reader.read_next_batch().num_rows >= 1


@pytest.mark.long
@pytest.mark.mpi
def test_a_run_stopped_by_sigusr1_goes_on_at_its_next_block(tmp_path: Path) -> None:
    """It drains and ends in order without DONE; nobody joins an attempt; each block counts once in the end."""
    mine = [f"run.root={tmp_path}", "num_pairs=3", "run.resume=true"]
    job, errors = running("block 3/", *mine)
    job.send_signal(signal.SIGUSR1)
    rest = errors.read()
    assert job.wait(timeout=60) == 0
    assert "stopped on request" in rest
    assert "partial results" in rest
    folder = run_folder(tmp_path, "compare")
    assert not (folder / "DONE").exists()
    predicted = (folder / "predicted.json").read_bytes()
    assert {key for key, timed in json.loads(predicted)["points"].items() if timed} == {"steps", "transfers", "delays"}
    assert len(json.loads(predicted)["points"]["delays"]) == 9 * (1 + 4 + 2), "of nine requests with four tokens"
    with RunDir(folder).lock():
        joined = plain("compare", *SMALL, *mine)
    assert joined.returncode == 2
    assert f"{folder} is in use by" in joined.stderr
    done = plain("compare", *SMALL, *mine)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resumed, attempt 1: [3-8] of 9 blocks are done", done.stderr)
    assert "block 1/9" not in done.stderr
    found = tables(folder)
    assert sorted(found["blocks"]["block"]) == list(range(9))
    arms = tokens_by_arm(found)
    assert arms["colocated"].shape == (3 * 36, 4)
    assert (arms["colocated"] == arms["disaggregated"]).all()
    assert (folder / "predicted.json").read_bytes() == predicted, "the first attempt's prediction is the run's"
    attempts = json.loads((folder / "environment.json").read_text())["attempts"]
    assert [attempt["attempt"] for attempt in attempts] == [0, 1]
    again = plain("compare", *SMALL, *mine)
    assert again.returncode == 0
    assert f"skipped: {folder} is done" in again.stderr


@pytest.mark.long
@pytest.mark.mpi
def test_a_stop_before_the_first_block_fails(tmp_path: Path) -> None:
    """Else a job with too little time would go back into the queue for ever."""
    job, errors = running("calibrating", f"run.root={tmp_path}")
    job.send_signal(signal.SIGUSR1)
    rest = errors.read()
    assert job.wait(timeout=60) == 3
    assert "stopped before one block had ended: give the run more time" in rest


@pytest.mark.mpi
def test_a_typo_fails_before_any_rank_starts(tmp_path: Path) -> None:
    done = plain("compare", "transfer.piecs_in_flight=3", f"run.root={tmp_path}")
    assert done.returncode == 2
    assert "transfer.piecs_in_flight: no such key; did you mean pieces_in_flight?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.mpi
def test_sweeps_make_one_run_each(tmp_path: Path) -> None:
    one_arm = [o for o in SMALL if not o.startswith("num_pairs")]
    done = plain("serve", "-m", *one_arm, "transfer=whole,layerwise", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert len([f for f in (tmp_path / "serve").iterdir() if (f / "DONE").exists()]) == 2


def test_help_and_cfg_are_useful() -> None:
    help_text = plain("compare", "--help").stdout
    for word in ("placement", "workload", "1p1d", "launch.dry_run"):
        assert word in help_text
    assert "+preset: " in help_text
    for group in ("claims", "search", "prices"):  # of other experiments: compare does not read them
        assert f"{group}: " not in help_text
    assert "num_pairs" in plain("compare", "--cfg", "job").stdout
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        command = [sys.executable, "-m", "experiments.compare", "--help"]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_a_dry_run_prints_the_command_and_starts_nothing(tmp_path: Path) -> None:
    done = plain("compare", *SMALL, "launch.dry_run=true", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "-n 3" in done.stdout
    assert not os.listdir(tmp_path)
