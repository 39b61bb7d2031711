"""``experiments.claims`` end to end on the two cheapest claims: measured once, judged, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
ONLY = ["slow_link_penalty", "prefill_burst"]


def run_claims(root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [f"claims.only=[{','.join(ONLY)}]", "claims=quick", "model=micro", "run.report=false", *more]
    command = [sys.executable, "-m", "experiments.claims", *words, f"run.root={root}", "run.name=r", "run.resume=true"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)


@pytest.mark.long
@pytest.mark.mpi
def test_what_fails_is_a_reason_and_the_rest_is_judged(tmp_path: Path) -> None:
    """The hand-off needs two nodes, and is not told that it may share one: its claim stays without a value."""
    done = run_claims(tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "claims" / "r"
    claims = {each["claim"]: each for each in json.loads((folder / "claims.json").read_text())["claims"]}
    (burst,) = claims["prefill_burst"]["parts"]
    assert burst["num_samples"] == 5, "repeats, whatever they say on this machine"
    assert claims["slow_link_penalty"]["judgement"] == "not measurable here"
    (penalty,) = claims["slow_link_penalty"]["parts"]
    assert "share" in penalty["because"], "what the hand-off was refused for"
    assert penalty["modeled"] > 1, "256 MiB over 10 Gb/s, against the data sheet"
    assert not (folder / "DONE").exists(), "a measurement is missing"
    assert (folder / "claims.html").read_text().count("<article") == 2

    (gaps,) = folder.glob("runs/interference/interference-*/gaps.parquet")
    before = pd.read_parquet(gaps)
    again = run_claims(tmp_path)
    assert " is done " in (folder / "logs" / "interference.log").read_text(), again.stderr
    assert pd.read_parquet(gaps).equals(before), "what was measured is not measured again"


@pytest.mark.mpi
def test_under_mpirun_it_is_refused(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "PMIX_RANK": "0"}
    command = [sys.executable, "-m", "experiments.claims", f"run.root={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert "drop mpirun or srun" in done.stderr
    assert not list(tmp_path.iterdir())
