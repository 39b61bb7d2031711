"""Instances of several ranks for real: whatever is at both ends, tokens are those of one rank, and bytes add up."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from analysis.scaling import COLUMNS, NOTES, TITLES
from tests.mpi.programs.instances import REQUESTS, SCHEDULER, SPECS
from xpyd.placement import Kind

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
COMBINATIONS = [
    "tp1-tp1:micro:mpi:whole",  # what all others of a model are compared with
    "tp2-tp1:micro:mpi:layerwise",
    "tp1-tp2:micro:ucx:chunkwise",
    "tp2-tp2:micro:mpi:whole",
    "tp4-tp1:micro:mpi:whole",  # two copies of each head at the source: they share the load
    "tp2-tp4:micro:mpi:layerwise",  # two copies at the destination: both are sent
    "tp1-tp1:deep:mpi:whole",
    "tp2-pp2:deep:mpi:whole:gloo",
    "cp2-tp2:deep:mpi:whole:gloo",
    "tp1-pp2:deep:ucx:layerwise",
    "tp2-pp4:deep:mpi:chunkwise",  # heads come from two ranks, layers go to four
    "tp1-tp1:latent:mpi:whole",
    "tp1-pp2:latent:mpi:layerwise",
    "cp2-tp2:latent:ucx:chunkwise",
    "tp1-tp1:experts:mpi:whole",
    "cp2-pp4:experts:ucx:whole",
    "tp1-ep2:experts:ucx:chunkwise",
    "ep2-tp1:experts:mpi:layerwise",
    "ep2-ep4:experts:mpi:whole:gloo",  # two experts on each decode rank, and two copies of each KV head
    "cp4-pp2:deep:mpi:layerwise",  # a share of the blocks from each of four ranks, to each of two stages
]


@pytest.mark.long
@pytest.mark.mpi
def test_tokens_are_those_of_one_rank_and_bytes_add_up(mpirun: Run, tmp_path: Path) -> None:
    program = str(ROOT / "tests/mpi/programs/instances.py")
    done = mpirun(7, ["-m", "mpi4py", program, str(tmp_path), *COMBINATIONS], 240)
    assert done.returncode == 0, done.stderr
    expected: dict[str, NDArray[np.int64]] = {}
    for number, combination in enumerate(COMBINATIONS):
        found = {path.stem: pd.read_parquet(path) for path in (tmp_path / "serve" / str(number)).glob("*.parquet")}
        tokens = found["tokens"].sort_values(["request_id", "index"])[["request_id", "index", "token_id"]].to_numpy()
        assert len(tokens) == sum(request.output_len for request in REQUESTS)
        ends, model, *_ = combination.split(":")
        source, destination = ends.split("-")
        assert (tokens == expected.setdefault(model, tokens)).all(), combination
        transfers = found["transfers"].sort_values("request_id")
        assert transfers["verified"].all()
        width = (
            int(destination[2:]) if destination[:2] in ("tp", "ep") else 1
        )  # a head goes to every rank that holds it
        blocks = [-(-request.input_len // SCHEDULER.block_size) for request in REQUESTS]
        planned = [count * SCHEDULER.block_size * SPECS[model].kv_bytes_per_token(width) for count in blocks]
        assert transfers["payload_bytes"].tolist() == planned, combination
        (block,) = found["blocks"].to_dict("records")
        assert block["ledger_bytes"] == block["transport_bytes"] == sum(planned), combination
        assert set(found["steps"]["rank"]) == {1, 1 + int(source[2:])}, "leaders write the steps"


@pytest.mark.long
@pytest.mark.mpi
def test_a_comparison_of_unequal_widths(tmp_path: Path) -> None:
    """2 + 1 ranks against 3 colocated ones, through the front end; an instance of two ranks follows its leader."""
    overrides = ["model=micro", "placement.allow_shared_node=true", "placement.prefill_tp=2", "num_pairs=1"]
    overrides += ["transfer.block_order=heads_first", "null_control=false", "run.report=false", f"run.root={tmp_path}"]
    overrides += ["workload.num_requests=4", "workload.input_len=40", "workload.output_len=4"]
    command = [sys.executable, "-m", "experiments.compare", *overrides, "workload.arrival.rate_rps=40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "1P(tp2)1D: rank 0: client on" in done.stderr
    assert "no prediction" in done.stderr
    (folder,) = (tmp_path / "compare").iterdir()
    tokens = pd.read_parquet(folder / "tokens.parquet").sort_values(["block", "request_id", "index"])
    blocks = pd.read_parquet(folder / "blocks.parquet").set_index("arm")["block"]
    arms = [tokens[tokens["block"] == block]["token_id"].tolist() for block in blocks]
    assert len(arms[0]) == 16
    assert arms[0] == arms[1]


def test_every_kind_of_instance_has_its_scaling_table() -> None:
    assert set(get_args(Kind)) == set(TITLES) == set(COLUMNS) == set(NOTES)


@pytest.mark.long
@pytest.mark.mpi
def test_scaling_compares_each_way_with_one_rank(tmp_path: Path) -> None:
    overrides = ["model=micro", "placement.colocated_tp=2", "sweep.widths=[1,2]", "sweep.prompt_tokens=[32]"]
    overrides += ["sweep.num_micro_batches=[1,2]"]
    overrides += ["sweep.num_decode_seqs=[2]", "sweep.num_steps=1", "sweep.num_repeats=1", "run.report=false"]
    command = [sys.executable, "-m", "experiments.scaling", *overrides, f"run.root={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = pd.read_parquet(next((tmp_path / "scaling").iterdir()) / "scaling.parquet")
    seen = sorted(zip(rows["kind"], rows["variant"], rows["width"], rows["rank"], strict=True))
    alone, tensor = [("tp", "", 1, 0)] * 2, [("tp", "", 2, rank) for rank in (0, 0, 1, 1)]
    context = [("cp", split, 2, rank) for split in ("contiguous", "zigzag") for rank in (0, 1)]
    pipeline = [("pp", variant, 2, rank) for variant in ("1 micro-batch", "2 micro-batches") for rank in (0, 1)]
    assert seen == [*context, *pipeline, *alone, *tensor]
    rows = rows.set_index(["kind", "width"])
    one, two = rows.loc[("tp", 1)], rows.loc[("tp", 2)]
    assert (one[["exchange_s", "exchange_bytes", "logit_error"]] == 0).all(axis=None)
    several = rows[rows.index.get_level_values("width") > 1]
    assert (several["exchange_s"] < several["step_s"]).all()
    assert several.loc[several["rank"] == 0, "logit_error"].between(0, 1e-4).all()
    # Float32. Two sums a layer and the logits of this rank's half of the vocabulary; the keys and values of the tokens
    # of this rank; the hidden states of all of a batch, from the first stage alone.
    hidden, layers, vocab, kv_bytes_per_token = 64, 2, 256, 2 * 2 * 2 * 16 * 4
    tokens = two["num_prefill_tokens"] + two["num_decode_seqs"]
    sampled = two["num_decode_seqs"].clip(lower=1)
    assert (two["exchange_bytes"] == 4 * (2 * layers * hidden * tokens + vocab // 2 * sampled)).all()
    assert (rows.loc[("cp", 2), "exchange_bytes"] == 16 * kv_bytes_per_token).all()
    assert (rows.loc[("pp", 2), "exchange_bytes"] == rows.loc[("pp", 2), "rank"].map({0: 2 * hidden * 4, 1: 0})).all()
