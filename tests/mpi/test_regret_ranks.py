"""``regret`` over loopback: every way of a frozen plan plays in one run, instances of two ranks and hybrid ones too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.unit.test_plan import planned
from xpyd.entry import Job
from xpyd.planning import run_plan
from xpyd.run_dir import RunDir

ROOT = Path(__file__).parents[2]
WAYS = ["2C", "1C(tp2)", "1P1D whole", "1P1D whole hybrid", "1P1D layerwise", "1P1D layerwise hybrid"]


@pytest.mark.long
@pytest.mark.mpi
def test_every_way_of_a_plan_is_played(tmp_path: Path) -> None:
    config = planned(
        "model=micro",
        "plan={widths:[1,2],modes:[whole,layerwise],hybrid:true}",
        "workload.num_requests=4",
        "workload.input_len=32",
        "workload.output_len=4",
        "slo.ttft_s=1e-6",  # nothing meets it: the ladder goes down
        "search={start_rps:64,max_rps:64,growth:64,attainment:0.5,precision:0.9,block_s:0.05,num_repeats:1}",
    )
    plan = RunDir.create(tmp_path, "plan", "mine")
    run_plan(config, Job(config, plan))
    overrides = [
        f"regret.plan={plan.path}",
        "placement.allow_shared_node=true",
        "transport=mpi",
        "faults.detect_s=30",  # a crowded machine is no fault
        "run.report=false",
        f"run.root={tmp_path}",
    ]
    command = [sys.executable, "-m", "experiments.regret", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "regret").iterdir()
    rows = pd.read_parquet(folder / "saturation.parquet")
    assert rows.groupby("arm", sort=False)["rate_rps"].apply(list).to_dict() == {way: [64, 1] for way in WAYS}
    blocks = pd.read_parquet(folder / "blocks.parquet").set_index("block")
    arm_of = rows.set_index("block")["arm"]
    moved = blocks["ledger_bytes"].groupby(arm_of).sum()
    assert (moved[["1P1D whole", "1P1D layerwise"]] > 0).all()
    assert (moved[["2C", "1C(tp2)"]] == 0).all()
    pieces = pd.read_parquet(folder / "transfers.parquet").set_index("block")["mode"].groupby(arm_of).agg(set)
    assert pieces["1P1D whole"] == {"whole"}
    assert pieces["1P1D layerwise"] == {"layerwise"}
    stages = pd.read_parquet(folder / "stages.parquet")
    assert not (stages["stage"] == "failed").any()
