"""``tune_colocated`` and the comparison that uses it, over loopback: the preset is found, and its arm runs by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SMALL = [
    "model=micro",
    "placement.allow_shared_node=true",
    "workload.num_requests=3",
    "workload.input_len=48",
    "workload.output_len=6",
    "workload.arrival.rate_rps=50",
    "faults.detect_s=30",  # a crowded machine is no fault
]
# Only the start and one other: whichever wins, the rows of both are there.
GRID = ["search.policies=[chunked]", "search.max_num_batched_tokens=[16]", "search.max_num_seqs=[8]"]


def run(experiment: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"experiments.{experiment}", *SMALL, *overrides]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.long
@pytest.mark.mpi
def test_compare_finds_the_tuned_rival_and_plays_it(tmp_path: Path) -> None:
    root = f"run.root={tmp_path}"
    done = run("tune_colocated", *GRID, "search.num_final_repeats=5", root, "transport=mpi")
    assert done.returncode == 0, done.stderr
    assert "tuned" in done.stdout or "start stays" in done.stdout, "the report names the outcome"
    (folder,) = (tmp_path / "tune_colocated").iterdir()
    rows = pd.read_parquet(folder / "tune_colocated.parquet")
    assert rows.groupby("candidate").size().to_dict() == {"chunked 256 x 32": 5, "chunked 16 x 8": 5}
    assert (rows["attainment"] > 0).all()
    chunks = largest_prefill(folder)
    assert chunks == {"chunked 256 x 32": 48, "chunked 16 x 8": 16}, "every candidate ran with its own chunk"
    preset = folder / "rival" / "tuned.yaml"
    assert f"{yaml.safe_load(preset.read_text())['scheduler']['max_num_batched_tokens']} x" in done.stderr

    # Let the small chunk have won: noise decides on blocks this short.
    content = yaml.safe_load(preset.read_text())
    content["scheduler"] |= {"max_num_batched_tokens": 16, "max_num_seqs": 8}
    preset.write_text(yaml.safe_dump(content))
    compared = run("compare", "num_pairs=1", "transport=mpi", root)
    assert compared.returncode == 0, compared.stderr
    assert str(preset) in compared.stderr
    assert "Colocated rivals" in compared.stdout
    (folder,) = (tmp_path / "compare").iterdir()
    assert largest_prefill(folder) == {"colocated": 48, "colocated_tuned": 16, "disaggregated": 48, "null": 16}
    assert yaml.safe_load((folder / "config.yaml").read_text())["rival"]["scheduler"] == content["scheduler"]


def largest_prefill(folder: Path) -> dict[str, int]:
    """The most tokens of one prompt chunk in a step, by arm: steps that hold one sequence."""
    steps, blocks = (pd.read_parquet(folder / f"{name}.parquet") for name in ("steps", "blocks"))
    steps = steps[steps["num_prefill_seqs"] == 1].merge(blocks[["block", "arm"]], on="block")
    return {str(arm): int(most) for arm, most in steps.groupby("arm")["num_prefill_tokens"].max().items()}
