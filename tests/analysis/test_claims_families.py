"""What each claim reads out of tables whose answer is known, and that a planted contradiction is called one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.claims.claim import Judgement, Unmeasurable
from analysis.claims.evaluate import Outcome, evaluate
from analysis.claims.families import batching, bill, caching, comparison, interference, queueing, saturation
from analysis.claims.folders import Known
from analysis.claims.registry import all_claims, chosen
from analysis.load import Run, load_run
from tests.analysis.synthetic import MS, Way, block_rows, write_run
from xpyd.records import EconomicsRow, GapRow, SaturationRow, StepRow

HOLDS, FAILS, UNDECIDED, UNMEASURABLE = Judgement
GPU = {"labels": []}


def run_of(folder: Path, rows: list[Any], **config: Any) -> Run:
    environment = config.pop("environment", None)
    return load_run(write_run(folder, rows, config, environment))


def judged(name: str, runs: dict[str, Run]) -> Outcome:
    (outcome,) = evaluate(chosen([name], all_claims()), Known(runs, {}))
    return outcome


def gap_rows(beside_s: float) -> list[Any]:
    """Five repeats: alone 10 ms (one outlier), beside 128 tokens 15 ms, beside 512 ``beside_s``; and a small batch."""
    gaps = {0: (0.010, 0.010, 0.5), 128: (0.015, 0.015, 0.015), 512: (beside_s, beside_s, beside_s)}
    return [
        GapRow(chunk, batch, repeat, index, gap_s * (1 if batch == 8 else 100))
        for repeat in range(5)
        for batch in (1, 8)
        for chunk, values in gaps.items()
        for index, gap_s in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("beside_s", "ratio", "found"), [(0.06, 6, HOLDS), (0.5, 50, HOLDS), (0.015, 1.5, FAILS), (0.02, 2, HOLDS)]
)
def test_bursts(tmp_path: Path, beside_s: float, ratio: float, found: Judgement) -> None:
    run = run_of(tmp_path / "r", gap_rows(beside_s), experiment="interference")
    outcome = judged("prefill_burst", {"interference": run})
    assert outcome.parts[0].measured is not None
    assert outcome.parts[0].measured.samples == pytest.approx([ratio] * 5)
    assert outcome.judgement is found
    assert "8 decodes beside 512 prompt tokens" in outcome.parts[0].measured.conditions


def test_gaps_alone_are_needed() -> None:
    gaps = pd.DataFrame([{"num_decode_seqs": 8, "chunk_tokens": 512, "repeat": 0, "gap_s": 0.1}])
    with pytest.raises(Unmeasurable, match="no gaps alone"):
        interference.gap_ratios(gaps)


def pair_rows(colocated: Way, split: Way, num_pairs: int = 5) -> list[Any]:
    rows: list[Any] = []
    for pair in range(num_pairs):
        rows += block_rows(2 * pair, pair, "colocated", [(100, colocated), (100, colocated)])
        rows += block_rows(2 * pair + 1, pair, "disaggregated", [(100, split), (100, split)])
    return rows


SPIKY = Way(queue=30, prefill=20, gaps=(10,) * 8 + (100, 100), to_first=10)
SMOOTH = Way(queue=4, prefill=20, gaps=(10,) * 9 + (11,), moved=True)


def test_tails_and_first_tokens(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", pair_rows(SPIKY, SMOOTH))
    tails = judged("tail_latency", {"compare": run})
    values = [part.measured.value.mid for part in tails.parts if part.measured]
    assert values == pytest.approx([10, 1.1])  # p99 of 10 ms and two in ten of 100 ms; p99 between 10 and 11 ms: 11
    assert tails.judgement is HOLDS
    ttft = judged("ttft", {"compare": run})
    assert comparison.ttft_ratios(run).tolist() == pytest.approx([0.4] * 5)  # 24 ms instead of 60 ms
    assert ttft.judgement is HOLDS


def test_a_split_that_is_slower_breaks_both(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", pair_rows(Way(), Way(queue=50, gaps=(10, 10, 100), moved=True)))
    assert judged("ttft", {"compare": run}).judgement is FAILS
    tails = judged("tail_latency", {"compare": run})
    assert [part.judgement for part in tails.parts] == [FAILS, FAILS]


@pytest.mark.parametrize(("gaps", "ratio", "found"), [(2, 3 / 4, HOLDS), (3, 1, HOLDS), (7, 2, FAILS)])
def test_throughput_counts_tokens_of_blocks(tmp_path: Path, gaps: int, ratio: float, found: Judgement) -> None:
    """Blocks of a second; 4 tokens a request colocated, ``gaps`` + 1 split."""
    run = run_of(tmp_path / "r", pair_rows(Way(), Way(gaps=(10,) * gaps, moved=True)))
    assert comparison.throughput_ratios(run).tolist() == pytest.approx([ratio] * 5)
    assert judged("no_more_throughput", {"throughput": run}).judgement is found


def handoff_rows(layerwise_ms: float, whole_ms: float) -> list[Any]:
    """Five repeats of a hand-off in each mode, exposed so long behind prefills of 100 ms."""
    rows: list[Any] = []
    for repeat in range(5):
        for place, (mode, exposed) in enumerate((("layerwise", layerwise_ms), ("whole", whole_ms))):
            way = Way(prefill=100, exposed=exposed, moved=True)
            for row in block_rows(2 * repeat + place, repeat, "disaggregated", [(2048, way)]):
                rows.append(replace(row, mode=mode) if hasattr(row, "mode") else row)
    return rows


@pytest.mark.parametrize(
    ("layerwise_ms", "whole_ms", "found"), [(2, 25, HOLDS), (0, 25, HOLDS), (5, 25, FAILS), (2, 10, FAILS)]
)
def test_the_bill_by_mode(tmp_path: Path, layerwise_ms: float, whole_ms: float, found: Judgement) -> None:
    run = run_of(tmp_path / "r", handoff_rows(layerwise_ms, whole_ms), experiment="handoff")
    assert bill.exposed_shares(run, "whole").tolist() == pytest.approx([whole_ms / 100] * 5)
    assert judged("layerwise_bill", {"handoff": run}).judgement is found


def test_within_and_between_nodes(tmp_path: Path) -> None:
    """A transfer begins 1 ms into a prefill of 100 ms here: 124 ms with 25 exposed."""
    shared = run_of(tmp_path / "a", handoff_rows(0, 25), experiment="handoff")
    apart = run_of(tmp_path / "b", handoff_rows(0, 25), experiment="handoff", environment=GPU)
    assert bill.transfer_times(shared).tolist() == pytest.approx([0.124] * 5)
    assert judged("intra_node", {"handoff": shared}).judgement is FAILS
    assert judged("inter_node", {"handoff": apart}).judgement is FAILS
    missing = judged("inter_node", {"handoff": shared})
    assert (missing.judgement, missing.parts[0].because) == (UNMEASURABLE, "needs ranks on two nodes")
    assert "placement.allow_shared_node=true" in judged("intra_node", {"handoff": apart}).parts[0].because


def economics_rows() -> list[Any]:
    rest = (256, 268_435_456, 0.05, 0.0107, 0.0107, 0.214, 0.0, 0.0, 0.0, 0.0, 0.0, "split")
    return [EconomicsRow("llama3_8b", 200.0, 2048, *rest)]


def test_the_bill_of_an_8b_is_modeled_beside_and_never_judged(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", handoff_rows(0, 25), experiment="handoff")
    modeled = run_of(tmp_path / "m", economics_rows(), experiment="economics")
    outcome = judged("fast_link_penalty", {"handoff": run, "economics": modeled})
    part = outcome.parts[0]
    assert (outcome.judgement, part.measured) == (UNMEASURABLE, None)
    assert part.modeled is not None
    assert part.modeled.value == pytest.approx(0.214)
    for word in ("an 8B model", "GPU ranks", "two nodes", "a link of 200 Gb/s"):
        assert word in part.because
    assert "modeled" not in outcome.labels


def test_the_bill_of_an_8b_is_judged_where_model_link_and_ranks_are_there(tmp_path: Path) -> None:
    """256 MiB in 10.7 ms are 200 Gb/s; a prefill of 205 ms."""
    rows: list[Any] = []
    for repeat in range(5):
        way = Way(prefill=205, exposed=10.7, moved=True)
        for row in block_rows(repeat, repeat, "disaggregated", [(2048, way)]):
            if hasattr(row, "mode"):
                row = replace(row, mode="whole", payload_bytes=268_435_456)
            if getattr(row, "stage", "") == "transfer_begin":
                row = replace(row, t_ns=row.t_ns + 204 * MS)
            rows.append(row)
    run = run_of(tmp_path / "r", rows, experiment="handoff", environment=GPU)
    fast = judged("fast_link_penalty", {"handoff": run})
    assert fast.parts[0].measured is not None
    assert fast.parts[0].measured.value.mid == pytest.approx(10.7 / 205)
    assert fast.judgement is HOLDS
    slow = judged("slow_link_penalty", {"handoff": run})
    assert "a link of 10 Gb/s (this one moved 201 Gb/s)" in slow.parts[0].because


@pytest.mark.parametrize(("wait_ms", "waiting"), [(100, 0.2), (1000, 2.0)])
def test_who_waits_with_landed_kv(tmp_path: Path, wait_ms: float, waiting: float) -> None:
    """Two requests that wait so long in a block of one second."""
    rows: list[Any] = []
    for block in range(5):
        rows += block_rows(block, block, "disaggregated", [(100, Way(admission=wait_ms, moved=True))] * 2)
    run = run_of(tmp_path / "r", rows, experiment="serve", scheduler={"max_num_seqs": 4})
    assert queueing.num_waiting(run).tolist() == pytest.approx([waiting] * 5)
    as_pull = judged("pull_queue", {"pull": run, "push": run})
    assert [part.judgement for part in as_pull.parts] == ([HOLDS, FAILS] if waiting < 1 else [FAILS, HOLDS])


@pytest.mark.parametrize(("gaps", "found"), [(7, HOLDS), (1, FAILS)])
def test_batching_pairs_blocks_of_one_number(tmp_path: Path, gaps: int, found: Judgement) -> None:
    runs = {}
    for name, way in (("continuous", Way(gaps=(10,) * gaps)), ("static", Way())):
        rows = [row for block in range(5) for row in block_rows(block, block, "colocated", [(50, way)])]
        runs[name] = run_of(tmp_path / name, rows, experiment="serve", scheduler={"max_num_seqs": 8})
    ratios = batching.batching_ratios(runs["continuous"], runs["static"])
    assert ratios.tolist() == pytest.approx([(gaps + 1) / 4] * 5)
    assert judged("continuous_batching", runs).judgement is found


@pytest.mark.parametrize(("cached_ms", "found"), [(20, HOLDS), (50, FAILS), (2, HOLDS)])
def test_prefill_saved_by_a_cache(tmp_path: Path, cached_ms: float, found: Judgement) -> None:
    """120 ms of prefill without a cache."""
    rows: list[Any] = []
    for repeat in range(5):
        rows += block_rows(2 * repeat, repeat, "none", [(1000, Way(prefill=120))])
        rows += block_rows(2 * repeat + 1, repeat, "pool lru", [(1000, Way(prefill=cached_ms))])
    run = run_of(tmp_path / "r", rows, experiment="kv_cache")
    assert caching.prefill_ratios(run).tolist() == pytest.approx([120 / cached_ms] * 5)
    assert judged("prefix_caching", {"kv_cache": run}).judgement is found


GOOD, LATE = Way(), Way(queue=900)  # the limit on the first token is 500 ms
MOVED, MOVED_LATE = Way(moved=True), Way(queue=900, moved=True)
SATURATION = {
    "experiment": "saturation",
    "prices": {"currency": "EUR", "prefill_rank_hour": 2.0, "decode_rank_hour": 2.0, "colocated_rank_hour": 2.0},
    "search": {"attainment": 0.9, "num_repeats": 5},
}


def saturation_run(folder: Path, split_rps: float, tokens_each: int = 4) -> Run:
    """Colocated ranks hold 8 /s and lose all at 16; split ranks hold ``split_rps`` and lose all at twice that."""
    held = Way(gaps=(10,) * (tokens_each - 1), moved=True)
    played = {("colocated", 8.0): GOOD, ("colocated", 16.0): LATE}
    played |= {("disaggregated", split_rps): held, ("disaggregated", 2 * split_rps): MOVED_LATE}
    rows: list[Any] = []
    for place, ((arm, rate), way) in enumerate(played.items()):
        for repeat in range(5):
            block = 5 * place + repeat
            made = block_rows(block, repeat, arm, [(100, way)] * 2)
            roles = {1: "prefill"} if arm == "disaggregated" else {1: "colocated"}
            rows += [replace(row, role=roles[row.rank]) if isinstance(row, StepRow) else row for row in made]
            rows.append(SaturationRow(block, arm, rate, repeat, 1.0))
    return run_of(folder, rows, **SATURATION)


@pytest.mark.parametrize(("split_rps", "goodput", "chunked"), [(24.0, HOLDS, FAILS), (4.0, FAILS, HOLDS)])
def test_rates_sustained(tmp_path: Path, split_rps: float, goodput: Judgement, chunked: Judgement) -> None:
    run = saturation_run(tmp_path / "r", split_rps)
    found = saturation.sustained(run)
    assert found.value.mid == pytest.approx(split_rps / 8)
    assert "which is not tuned" in found.conditions
    assert judged("goodput", {"saturation": run}).judgement is goodput
    assert judged("chunked_rival", {"saturation": run}).judgement is chunked


@pytest.mark.parametrize(("tokens_each", "saved", "found"), [(8, 0.5, HOLDS), (2, -1.0, FAILS)])
def test_cost_of_tokens_within_limits(tmp_path: Path, tokens_each: int, saved: float, found: Judgement) -> None:
    """As many blocks of a second and as dear ranks: twice the tokens cost half."""
    run = saturation_run(tmp_path / "r", 8.0, tokens_each)
    assert saturation.cost_ratios(run).tolist() == pytest.approx([1 - saved] * 5)
    assert judged("cost", {"saturation": run}).judgement is found


def test_use_of_pools_at_the_rate_sustained(tmp_path: Path) -> None:
    """Two steps of 20 ms a second: on one prefill rank of two pools 2 %, on two colocated ranks 2 %."""
    run = saturation_run(tmp_path / "r", 8.0)
    assert saturation.uses(run, "disaggregated").tolist() == pytest.approx([0.02] * 5)
    assert saturation.uses(run, "colocated").tolist() == pytest.approx([0.02] * 5)
    assert judged("utilisation", {"saturation": run}).judgement is FAILS


def test_a_rate_that_was_not_played_in_every_repeat_is_left_out(tmp_path: Path) -> None:
    """As a run that is stopped midway leaves it: here split ranks at 16 /s, in one repeat that they lose."""
    run = saturation_run(tmp_path / "r", 24.0)
    rows = [*block_rows(100, 0, "disaggregated", [(100, MOVED_LATE)] * 2)]
    rows.append(SaturationRow(100, "disaggregated", 16.0, 0, 0.0))
    for table, frame in run_of(tmp_path / "more", rows, **SATURATION).tables.items():
        run.tables[table] = pd.concat([run.tables[table], frame], ignore_index=True)
    found = saturation.sustained(run)
    assert (found.value.mid, found.num_samples) == (pytest.approx(3), 5)


def test_a_resample_in_which_an_arm_never_gave_way_only_widens_the_interval() -> None:
    """8 in 100 draws pick neither repeat in which the second arm fails at 16 /s: there it may hold anything."""
    first = pd.DataFrame([[1.0] * 5, [0.0] * 5], index=[4.0, 8.0])
    second = pd.DataFrame([[1.0] * 5, [1.0, 1.0, 1.0, 0.0, 0.0]], index=[8.0, 16.0])
    low, high = saturation.ratio_bounds(first, second, 0.9)
    assert low == 0
    assert 4 * 2**0.1 / 16 < high < 1, "it still holds at 8 /s in every draw"
    low, high = saturation.ratio_bounds(second, first, 0.9)
    assert (low > 1, high) == (True, float("inf"))
    never = pd.DataFrame([[0.0] * 5, [0.0] * 5], index=[4.0, 8.0])
    assert saturation.ratio_bounds(never, first, 0.9) == pytest.approx((0, 4 / (4 * 2**0.1)))
    assert np.isnan(saturation.ratio_bounds(first.iloc[:, :4], second.iloc[:, :4], 0.9)).all()


def test_an_arm_that_never_gave_way_leaves_it_open(tmp_path: Path) -> None:
    rows: list[Any] = []
    for repeat in range(5):
        rows += block_rows(2 * repeat, repeat, "colocated", [(100, GOOD)])
        rows += block_rows(2 * repeat + 1, repeat, "disaggregated", [(100, MOVED)])
        rows.append(SaturationRow(2 * repeat, "colocated", 8.0, repeat, 1.0))
        rows.append(SaturationRow(2 * repeat + 1, "disaggregated", 8.0, repeat, 1.0))
    run = run_of(tmp_path / "r", rows, **SATURATION)
    outcome = judged("goodput", {"saturation": run})
    assert outcome.judgement is UNDECIDED
    assert "never gave way" in outcome.parts[0].because


def test_four_repeats_decide_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", pair_rows(SPIKY, SMOOTH, num_pairs=4))
    outcome = judged("ttft", {"compare": run})
    assert outcome.judgement is UNDECIDED
    assert outcome.parts[0].because == "no interval: 4 block pairs, and it needs 5"


def test_one_claim_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    gaps = run_of(tmp_path / "r", gap_rows(0.06), experiment="interference")
    empty = run_of(tmp_path / "e", [], experiment="handoff")
    claims = chosen(["prefill_burst", "layerwise_bill", "ttft"], all_claims())
    bills, ttft, burst = evaluate(claims, Known({"interference": gaps, "handoff": empty}, {"compare": "no mpirun"}))
    assert burst.judgement is HOLDS
    assert bills.judgement is UNMEASURABLE
    assert ttft.parts[0].because == "measurement compare: no mpirun"
