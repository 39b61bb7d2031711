"""Ranks that prefill, hand off, receive and decode at once: same tokens, bytes that agree, no ring of waits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).parent / "programs" / "hybrid_ranks.py"
Run = Callable[..., subprocess.CompletedProcess[str]]
STAGES = ["queue_s", "prefill_s", "exposed_transfer_s", "admission_s", "decode_s"]


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


@pytest.mark.long
@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["ucx", "nixl"])
def test_every_rank_in_every_role(mpirun: Run, tmp_path: Path, transport: str) -> None:
    """Four ranks, each way drawn, pools for two requests: that every block is returned the session checks itself."""
    if transport == "nixl" and find_spec("nixl_cu12") is None:
        pytest.skip("nixl is not installed: pip install 'xpyd[nixl]'")
    done = mpirun(5, ["-m", "mpi4py", str(PROGRAM), str(tmp_path), transport], 120)
    assert done.returncode == 0, done.stderr
    found = tables(tmp_path)
    tokens = found["tokens"].sort_values(["block", "request_id", "index"])
    blocks = [own[["request_id", "index", "token_id"]].to_numpy() for _, own in tokens.groupby("block")]
    assert [len(own) for own in blocks] == [13 * 12 + 1] * 3
    assert all((own == blocks[0]).all() for own in blocks)
    decisions, transfers = found["decisions"], found["transfers"]
    assert len(decisions) == 2 * 14
    assert transfers["verified"].all()
    moved = decisions[decisions["moves"]].rename(columns={"prefill_rank": "src_rank", "decode_rank": "dst_rank"})
    way = ["block", "request_id", "src_rank", "dst_rank"]
    assert (transfers[way].sort_values(way).to_numpy() == moved[way].sort_values(way).to_numpy()).all()
    assert len(set(transfers["src_rank"]) & set(transfers["dst_rank"])) >= 2, "no rank was both ends"
    assert transfers.groupby("block").size().min() > 2
    planned = transfers.groupby("block")["payload_bytes"].sum()
    counted = found["blocks"].set_index("block").loc[planned.index]
    assert (counted["ledger_bytes"] == planned).all()
    assert (counted["transport_bytes"] == planned).all()


@pytest.mark.long
@pytest.mark.mpi
def test_the_third_arm_of_a_comparison(tmp_path: Path) -> None:
    """All three arms on the same requests; the rows say what was chosen, and at what cost."""
    options = ["model=micro", "placement.allow_shared_node=true", "workload.num_requests=6", "workload.input_len=40"]
    options += ["workload.output_len=6", "workload.arrival.rate_rps=40", "num_pairs=1", "null_control=false"]
    options += ["run.report=false", "faults.detect_s=30", "hybrid=move", f"run.root={tmp_path}"]
    command = [sys.executable, "-m", "experiments.compare", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "compare").iterdir()
    found = tables(folder)
    arms = found["blocks"].set_index("block")["arm"]
    tokens = found["tokens"].sort_values(["request_id", "index"])
    by_arm = {arm: own["token_id"].tolist() for arm, own in tokens.groupby(tokens["block"].map(arms))}
    assert by_arm["hybrid"] == by_arm["colocated"] == by_arm["disaggregated"]
    decisions = found["decisions"]
    assert decisions["moves"].all()
    assert set(decisions["reason"]) == {"hybrid.policy"}
    reckoned = decisions[STAGES].sum(axis=1) + decisions["imposed_s"]
    assert np.allclose(reckoned, decisions["move_s"])
    assert (decisions[["stay_s", "move_s"]] > 0).all().all()
    steps = found["steps"][found["steps"]["block"].map(arms) == "hybrid"]
    assert set(steps["role"]) == {"hybrid"}
    assert json.loads((folder / "predicted.json").read_text())["calibration"]["link"]
