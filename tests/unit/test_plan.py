"""Planning: every way to use the ranks, what is refused, and one question whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.analysis.synthetic import write_run
from tests.unit.test_config import composed
from tests.unit.test_simulate_run import points
from xpyd.calibration import fitted
from xpyd.codec_terms import read_codec_terms
from xpyd.config.base import ConfigError
from xpyd.config.load import load_config
from xpyd.config.modeled import Plan
from xpyd.economics.codecs import CodecTerm
from xpyd.entry import Job
from xpyd.plan_search import PlanConfig, candidates
from xpyd.planning import LINK, run_plan
from xpyd.records import CodecPointRow
from xpyd.run_dir import RunDir
from xpyd.streams import merge

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


def test_codecs_and_hybrid_routing_are_further_ways() -> None:
    halves, thirds = CodecTerm("halves", 0.5, 1.0, 1.0), CodecTerm("thirds", 0.3, 2.0, 2.0)
    names = [way.name for way in candidates(PlanConfig(2, codecs=(halves,), hybrid=True), 0.0, [thirds])]
    split = ["1P1D layerwise", "1P1D layerwise halves", "1P1D layerwise thirds", "1P1D layerwise hybrid"]
    assert names == ["2C", *split]
    wide = candidates(PlanConfig(4, widths=(2,), hybrid=True), 0.0)
    assert not any(way.hybrid for way in wide), "its costs are reckoned for instances of one rank"
    with pytest.raises(ValueError, match="holds a name twice"):
        candidates(PlanConfig(2, codecs=(halves, halves)), 0.0)


def test_a_run_of_codecs_says_what_they_cost(tmp_path: Path) -> None:
    def row(codec: str, prompt: int, repeat: int, seconds: float) -> CodecPointRow:
        return CodecPointRow(codec, prompt, 64, repeat, 4, 10**6, 10**6 // 4, seconds, 2 * seconds, 1.0)

    made = [row("int8 per head", prompt, n, s) for prompt in (0, 1) for n, s in enumerate((0.001, 0.002, 9.0))]
    write_run(tmp_path / "run", [row("none", 0, 0, 5.0), *made])
    (term,) = read_codec_terms(tmp_path / "run")
    assert term == CodecTerm("int8 per head", 0.25, pytest.approx(2.0), pytest.approx(4.0))
    with pytest.raises(ConfigError, match=r"plan\.codec_run=.*no whole run of codecs"):
        sustained(tmp_path, planned(f"plan.codec_run={tmp_path / 'nothing'}"))


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
        (["plan.codecs=[{name: none}]"], r"plan\.codecs\.0\.bytes_share"),
    ],
)
def test_what_cannot_be_planned_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(*overrides)


def test_a_codec_pays_on_a_slow_link_and_loses_where_it_takes_longer_than_it_saves(tmp_path: Path) -> None:
    codecs = "plan.codecs=[{name: free, bytes_share: 0.1, encode_s_per_gbyte: 0, decode_s_per_gbyte: 0},"
    codecs += "{name: slow, bytes_share: 0.99, encode_s_per_gbyte: 300, decode_s_per_gbyte: 300}]"
    slow, fast = (sustained(tmp_path / rate, planned(f"fabric.rate_gbps={rate}", codecs)) for rate in ("0.05", "100"))
    assert slow.get("1P1D layerwise", 0) < slow["1P1D layerwise free"]
    assert fast.get("1P1D layerwise slow", 0) < fast["1P1D layerwise"] <= fast["1P1D layerwise free"]


def test_hybrid_ranks_are_played_and_who_moved_is_told(tmp_path: Path) -> None:
    config = planned("fabric.rate_gbps=100", "plan.hybrid=true")
    run_dir = RunDir.create(tmp_path, "plan", "run")
    run_plan(config, Job(config, run_dir))
    rows = merge(run_dir.path, "plan").to_pandas()
    hybrid = rows[rows["hybrid"]]
    assert set(hybrid["candidate"]) == {"1P1D layerwise hybrid"}
    assert hybrid["moved_share"].between(0, 1).all()
    assert (hybrid["threshold_tokens"].isna() == (hybrid["moved_share"] == 0)).all()
    assert set(rows[~rows["hybrid"] & (rows["num_colocated"] == 0)]["moved_share"]) == {1.0}


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


def test_a_calibrated_link_is_varied_too(tmp_path: Path) -> None:
    """The calibrated link moves 8 Gbit/s: a slower wire counts, a faster one leaves the software's speed."""
    path = tmp_path / "calibration.yaml"
    path.write_text(yaml.safe_dump({"conditions": {"model": "tiny"}, **fitted([points()])}))
    config = planned(f"simulate.calibration={path}", "plan.link_gbps=[0.02,1000]", "workload.input_len=256")
    run_dir = RunDir.create(tmp_path, "plan", "run")
    run_plan(config, Job(config, run_dir))
    run_dir.finish()
    rows = pd.read_parquet(run_dir.path / "plan.parquet")
    splits = rows[(rows["num_prefill"] > 0) & (rows["rate_rps"] == config.search.start_rps)]
    gaps = splits.groupby(["axis", "value"])["itl_p99_s"].mean()  # the first one waits for the KV
    assert gaps[LINK, 0.02] > 2 * gaps["", 0.0]
    assert gaps[LINK, 1000.0] == gaps["", 0.0]
