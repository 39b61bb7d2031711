"""Experts on several ranks: one rank's logits, whatever the map, overlapped or not, over MPI and torch.distributed."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mpi.test_experiments import plain, run_folder, tables

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
VARIANTS = ("contiguous", "overlapped", "placed")
TINY = ["model.num_layers=2", "sweep.widths=[1,4]", "sweep.prompt_tokens=[24]", "sweep.num_decode_seqs=[5]"]
TINY += ["sweep.num_steps=1", "sweep.num_repeats=1"]


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.parametrize(("num_ranks", "kind"), [(2, "mpi"), (4, "mpi"), (2, "gloo")])
def test_logits_are_those_of_one_rank(mpirun: Run, num_ranks: int, kind: str) -> None:
    done = mpirun(num_ranks, ["-m", "mpi4py", str(ROOT / "tests/mpi/programs/expert_parallel.py"), kind], 120)
    assert done.returncode == 0, done.stderr
    worst, num_bytes, held = done.stdout.strip().splitlines()[-1].split(maxsplit=2)
    assert float(worst) < 1e-4
    assert int(num_bytes) > 0
    assert ast.literal_eval(held) == [8 // num_ranks] * num_ranks


@pytest.mark.long
@pytest.mark.mpi
def test_the_experiment_counts_what_crosses(tmp_path: Path) -> None:
    """Four ranks taken for two nodes, with a shared expert and a dense layer, beside one rank."""
    done = plain("expert_parallel", *TINY, "run.report=false", f"run.root={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = tables(run_folder(tmp_path, "expert_parallel"))["experts"]
    counts = rows.groupby(["width", "variant"]).size()
    assert set(counts) == {2}
    assert set(counts.index) == {(1, "one rank"), *((4, variant) for variant in VARIANTS)}
    alone, four = rows[rows["width"] == 1], rows[rows["width"] == 4]
    assert four["logit_error"].lt(1e-3).all()
    assert (alone[["sent_bytes", "logit_error"]] == 0).all(axis=None)
    assert (four["cross_node_bytes"] > 0).all()
    assert (four["cross_node_bytes"] < four["sent_bytes"]).all()
    assert (rows["exchange_s"] <= rows["step_s"]).all()
    ordered = four.sort_values("prompt_tokens").groupby("variant")
    sent = {name: own["sent_bytes"].tolist() for name, own in ordered}
    assert sent["contiguous"] == sent["overlapped"]
    assert sent["contiguous"] != sent["placed"]
