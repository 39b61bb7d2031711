"""A prefix cache changes no token, colocated or moved, on one rank or two; and KV that is there does not move."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "prefix_cache.py"
Run = Callable[..., subprocess.CompletedProcess[str]]
BLOCK_BYTES = 3 * 2 * 4 * 2 * 8 * 4  # layers, K and V, block_size, KV heads, head_dim, float32
STAGED = {"staging": "on", "pieces_in_flight": 2, "max_piece_bytes": 4096, "staging_bytes": 16384}


def play(mpirun: Run, folder: Path, transport: str, settings: dict[str, object], width: int) -> dict[str, pd.DataFrame]:
    args = ["-m", "mpi4py", str(PROGRAM), str(folder), transport, json.dumps(settings), str(width)]
    done = mpirun(3, args, 120)
    assert done.returncode == 0, done.stderr
    return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


def check_tokens(tables: dict[str, pd.DataFrame]) -> None:
    tokens = tables["tokens"].sort_values(["block", "request_id", "index"])
    found = {number: own["token_id"].tolist() for number, own in tokens.groupby("block")}
    assert len(found[0]) == 58
    for number, own in found.items():
        assert own == found[0], f"block {number}"


@pytest.mark.long
@pytest.mark.mpi
def test_tokens_bytes_and_rows_of_single_ranks(mpirun: Run, tmp_path: Path) -> None:
    tables = play(mpirun, tmp_path, "ucx", {}, 1)
    check_tokens(tables)
    caches, blocks = tables["caches"], tables["blocks"].set_index("block")
    assert set(blocks.index) == set(range(11))
    assert not (caches["block"] == 0).any()
    assert caches.loc[caches["block"] == 1, "num_cached_tokens"].sum() >= 36 * 3
    moved_bytes = tables["tiers"].groupby(["block", "way"])["num_bytes"].sum()  # what comes back is a matter of timing
    assert moved_bytes[2, "pool host"] > 0
    for block in (3, 4):
        on_wire = [moved_bytes.get((block, way), 0) for way in ("put", "fetched")]
        assert on_wire[0] > 0
        assert sum(on_wire) == blocks.loc[block, "transport_bytes"]
        assert on_wire[0] % BLOCK_BYTES == 0
    assert (blocks["ledger_bytes"] == blocks["transport_bytes"]).all()
    moved = tables["transfers"].merge(tables["requests"], on=["block", "request_id"])
    here = caches[caches["role"] == "decode"].groupby(["block", "request_id"])["saved_bytes"].sum()
    saved = here.reindex(pd.MultiIndex.from_frame(moved[["block", "request_id"]])).to_numpy()
    assert (moved["payload_bytes"] + saved == -(-moved["input_len"] // 4) * BLOCK_BYTES).all()
    assert all(own["saved_bytes"].sum() > 0 for _, own in caches[caches["role"] == "decode"].groupby("block"))
    assert moved["verified"].all()


@pytest.mark.long
@pytest.mark.mpi
def test_staged_over_mpi_beside_an_instance_of_two_ranks(mpirun: Run, tmp_path: Path) -> None:
    tables = play(mpirun, tmp_path, "mpi", STAGED, 2)
    check_tokens(tables)
    caches = tables["caches"]
    assert caches.loc[caches["block"] == 1, "num_cached_tokens"].sum() >= 36 * 3


@pytest.mark.long
@pytest.mark.mpi
def test_the_experiment_plays_every_arm_and_reports(tmp_path: Path) -> None:
    small = ["model=micro", "placement.allow_shared_node=true", "faults.detect_s=30", f"run.root={tmp_path}"]
    small += ["sweep.policies=[expected_completion]", "sweep.tiers=[pool,remote]", "sweep.num_repeats=1"]
    small += ["workload.num_requests=6", "workload.arrival.rate_rps=40"]
    command = [sys.executable, "-m", "experiments.kv_cache", *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "kv_cache").iterdir()
    blocks = pd.read_parquet(folder / "blocks.parquet")
    assert set(blocks["arm"]) == {"none", "pool expected_completion", "remote expected_completion"}
    assert (blocks["ledger_bytes"] == blocks["transport_bytes"]).all()
    assert "prefill time, with" in (folder / "report.html").read_text()
