"""Hand-offs through a codec: what crosses the wire is encoded, counted as such, and verified like any other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

PROGRAM = Path(__file__).parent / "programs" / "hand_off_modes.py"
Run = Callable[..., subprocess.CompletedProcess[str]]
STAGED = {"staging": "on", "pieces_in_flight": 2, "max_piece_bytes": 1000, "staging_bytes": 4000}
INT8 = {"codec": {"name": "int8", "granularity": "head"}}
ORDERS = {"pool_order": "blocks_first", "block_order": "heads_first"}
NUM_VALUES, NUM_LAYERS = 2 * 4 * 2 * 8, 3  # of a block of one layer: K and V, block_size, KV heads, head_dim
ENCODED_BYTES = NUM_VALUES + 2 * 2 * 4  # a byte each, and a scale for K and V of two heads
INPUT_BLOCKS = {0: 10, 1: 18, 3: 24, 4: 2, 5: 16}  # of the requests that move


@pytest.mark.long
@pytest.mark.mpi
def test_every_mode_through_int8(mpirun: Run, tmp_path: Path) -> None:
    """One session: colocated, then every mode through int8, in a pool of blocks and heads first."""
    done = mpirun(
        3, ["-m", "mpi4py", str(PROGRAM), str(tmp_path), "mpi", json.dumps({**STAGED, **ORDERS, **INT8})], 180
    )
    assert done.returncode == 0, done.stderr
    found = {path.stem: pd.read_parquet(path) for path in tmp_path.glob("*.parquet")}
    encoded_bytes_moved_and_were_counted(found["transfers"], found["blocks"].set_index("block"))
    all_modes_decoded_from_the_same_bytes(found["tokens"].sort_values(["block", "request_id", "index"]))


@pytest.mark.long
@pytest.mark.mpi
def test_a_comparison_through_fp8(tmp_path: Path) -> None:
    """One word on the command line: encoded bytes in the ledger, a prediction that knows them, labels in the page."""
    small = ["model=micro", "placement.allow_shared_node=true", "num_pairs=1", "transport=mpi", "faults.detect_s=30"]
    load = ["workload.num_requests=4", "workload.input_len=40", "workload.output_len=6", "null_control=false"]
    command = [sys.executable, "-m", "experiments.compare", "codec=fp8", *small, *load, f"run.root={tmp_path}"]
    done = subprocess.run(command, cwd=PROGRAM.parents[3], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "compare").iterdir()
    transfers = pd.read_parquet(folder / "transfers.parquet")
    per_block = 2 * 16 * 2 * 16 + 2 * 2 * 4  # K and V, block_size, KV heads, head_dim: a byte each; and four scales
    assert transfers["payload_bytes"].tolist() == [3 * 2 * per_block] * 4  # blocks of 40 tokens, layers
    assert transfers["verified"].any()
    assert (folder / "predicted.json").exists()
    assert "KV moves in codec fp8" in done.stdout
    assert "Codec fp8 is lossy" in done.stdout


def encoded_bytes_moved_and_were_counted(transfers: pd.DataFrame, blocks: pd.DataFrame) -> None:
    assert len(transfers) == 6 * len(INPUT_BLOCKS)
    assert transfers["verified"].all()
    assert transfers["staged"].all()
    expected = transfers["request_id"].map(INPUT_BLOCKS) * NUM_LAYERS * ENCODED_BYTES
    assert (transfers["payload_bytes"] == expected).all()
    for number, own in transfers.groupby("block"):
        assert own["payload_bytes"].sum() == blocks.loc[number, "ledger_bytes"] == blocks.loc[number, "transport_bytes"]


def all_modes_decoded_from_the_same_bytes(tokens: pd.DataFrame) -> None:
    """int8 may differ from the colocated arm; the modes agree exactly, though freed blocks are poisoned meanwhile."""
    colocated, first, *others = (own["token_id"].to_numpy() for _, own in tokens.groupby("block"))
    assert len(others) == 5
    assert all(np.array_equal(other, first) for other in others)
    assert (first == colocated).mean() > 0.5
