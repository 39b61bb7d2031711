"""Planning: every way to use the ranks, what is refused, and one question whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.unit.test_config import composed
from xpyd.config.base import ConfigError
from xpyd.config.load import load_config
from xpyd.config.modeled import Plan
from xpyd.entry import Job
from xpyd.plan_search import PlanConfig, candidates
from xpyd.planning import run_plan
from xpyd.run_dir import RunDir

QUICK = [
    "model=tiny",
    "workload.num_requests=20",
    "plan.num_ranks=2",
    "plan.link_gbps=[]",
    "plan.input_lens=[]",
    # A machine about as fast as one core: rates stay low, blocks short.
    "machine.peak_flops=2e11",
    "machine.memory_gbytes_s=20",
    "search={start_rps:4,max_rps:64,growth:4,attainment:0.9,precision:0.5,block_s:1,num_repeats:2}",
]


def planned(*overrides: str) -> Plan:
    config = load_config(composed("plan", *QUICK, *overrides))
    assert isinstance(config, Plan)
    return config


def sustained(folder: Path, config: Plan) -> dict[str, float]:
    """The highest rate with the target met, by candidate."""
    run_dir = RunDir.create(folder, "plan", "run")
    run_plan(config, Job(config, run_dir))
    run_dir.finish()
    rows = pd.read_parquet(run_dir.path / "plan.parquet")
    rates = rows.groupby(["candidate", "rate_rps"], as_index=False)["attainment"].mean()
    held = rates[rates["attainment"] >= config.search.attainment]
    return held.groupby("candidate")["rate_rps"].max().to_dict()


def test_every_way_to_use_four_ranks() -> None:
    names = [way.name for way in candidates(PlanConfig(4), 0.0)]
    assert names == ["4C", "1P3D layerwise", "2P2D layerwise", "3P1D layerwise"]


def test_widths_and_modes_multiply_and_all_ranks_are_used() -> None:
    found = candidates(PlanConfig(4, widths=(1, 2), modes=("whole", "layerwise")), 0.0)
    assert all(way.placement.num_workers == 4 for way in found)
    assert len({way.name for way in found}) == len(found)
    assert sum(not way.splits for way in found) == 2
    assert {(way.placement.prefill_tp, way.placement.decode_tp) for way in found if way.splits} == {
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    }


def test_what_does_not_fit_a_rank_is_left_out() -> None:
    found = candidates(PlanConfig(8, widths=(1, 2, 4), rank_memory_gbytes=80.0), weight_bytes=140e9)
    assert {way.placement.colocated_tp for way in found if not way.splits} == {2, 4}
    assert {way.placement.prefill_tp for way in found if way.splits} == {2, 4}
    with pytest.raises(ValueError, match="does not fit; allow wider instances"):
        candidates(PlanConfig(8, rank_memory_gbytes=80.0), weight_bytes=140e9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["plan.num_ranks=3", "plan.widths=[2]"], r"num_ranks=3: no width of \[2\] divides it"),
        (["plan.num_ranks=64", "plan.widths=[1,2,4]"], r"candidates, at most 200 are played"),
        (["workload=closed_loop"], r"plan sets the rate of arrivals"),
        (["plan.num_ranks=4", "plan.widths=[3]"], r"plan\.widths"),
    ],
)
def test_what_cannot_be_planned_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(*overrides)


def test_a_slow_link_makes_splitting_lose_and_where_it_turns_is_told(tmp_path: Path) -> None:
    slow = sustained(tmp_path / "slow", planned("fabric.rate_gbps=0.01"))
    assert slow.get("1P1D layerwise", 0) < slow["2C"], "KV of a request takes longer than the limit on its first gap"
    both = planned("fabric.rate_gbps=0.01", "plan.link_gbps=[0.01,100]")
    run_dir = RunDir.create(tmp_path / "both", "plan", "run")
    run_plan(both, Job(both, run_dir))
    run_dir.finish()
    rows = pd.read_parquet(run_dir.path / "plan.parquet")
    axis = rows[rows["axis"] == "link_gbps"]
    best = axis[axis["attainment"] >= 0.9].groupby(["value", "candidate"])["rate_rps"].max()
    assert best.get((0.01, "1P1D layerwise"), 0) < best[100.0, "1P1D layerwise"]
    assert best[0.01, "2C"] == best[100.0, "2C"], "colocated moves nothing"
