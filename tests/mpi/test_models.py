"""Experts and latent attention in a comparison: both arms give the same tokens, and the bill is the latent's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
LATENT = "{kv_lora_rank: 16, qk_nope_head_dim: 16, qk_rope_head_dim: 8, v_head_dim: 16}"
EXPERTS = "{num_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 32}"
SMALL = [
    *(
        "model=micro",
        "model.num_kv_heads=1",
        "model.head_dim=24",
        f"+model.latent={LATENT}",
        f"+model.experts={EXPERTS}",
    ),
    *("workload.num_requests=4", "workload.input_len=40", "workload.output_len=6", "workload.arrival.rate_rps=40"),
    *("placement.allow_shared_node=true", "num_pairs=1", "null_control=false", "transport=mpi", "run.report=false"),
    "faults.detect_s=30",  # a crowded machine is no fault
]
BLOCK_BYTES = 16 * (16 + 8) * 4  # block_size tokens in float32, of one layer


@pytest.mark.long
@pytest.mark.mpi
def test_a_comparison_of_a_latent_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.compare", *SMALL, f"run.root={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "compare").iterdir()
    found = {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}
    assert found["transfers"]["payload_bytes"].tolist() == [3 * 2 * BLOCK_BYTES] * 4  # blocks of 40 tokens, layers
    assert found["transfers"]["verified"].any()
    tokens = found["tokens"].merge(found["blocks"][["block", "arm"]], on="block").sort_values(["request_id", "index"])
    arms = {arm: own["token_id"].tolist() for arm, own in tokens.groupby("arm")}
    assert len(arms["colocated"]) == 4 * 6
    assert arms["colocated"] == arms["disaggregated"]
