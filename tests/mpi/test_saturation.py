"""``saturation`` over loopback: rates rise until an arm gives way, and the page shows them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.mpi
def test_rates_rise_until_the_limit_is_lost(tmp_path: Path) -> None:
    overrides = [
        "model=micro",
        "placement.allow_shared_node=true",
        "transport=mpi",
        "faults.detect_s=30",  # a crowded machine is no fault
        "workload.num_requests=4",
        "workload.input_len=32",
        "workload.output_len=4",
        "slo.ttft_s=1e-6",  # nothing meets it: the ladder goes down
        "search={start_rps:64,max_rps:64,growth:8,attainment:0.5,precision:0.9,block_s:0.05,num_repeats:1}",
        f"run.root={tmp_path}",
    ]
    command = [sys.executable, "-m", "experiments.saturation", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "saturation").iterdir()
    rows = pd.read_parquet(folder / "saturation.parquet")
    assert rows.groupby("arm")["rate_rps"].apply(list).to_dict() == {
        "colocated": [64, 8, 1],
        "disaggregated": [64, 8, 1],
    }
    assert "colocated less than 1 /s" in done.stdout
    offsets = pd.read_parquet(folder / "requests.parquet").groupby("block")["arrival_offset_ns"].max()
    assert offsets.iloc[-1] > 20 * offsets.iloc[0], "the last blocks' arrivals are 64 times as far apart as the first's"
