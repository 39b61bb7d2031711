"""The per-request frame, on a run whose stamps are known to the millisecond."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.load import load_run
from analysis.requests import STAGE_TIMES, request_frame
from analysis.tokens import order_tokens
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd import metrics
from xpyd.records import StageRow, TokenRow

MOVED = Way(queue=10, prefill=20, exposed=6, admission=4, to_first=0.1, gaps=(15, 10, 10), moved=True)


@pytest.fixture
def frame(tmp_path: Path) -> pd.DataFrame:
    ways = [
        (100, MOVED),
        (600, Way(queue=5, prefill=40, to_first=5, gaps=(10, 30))),
        (100, Way(failed="rank 1: out of KV blocks")),
        (100, Way(unfinished=True)),
        (100, Way(gaps=())),
    ]
    return request_frame(load_run(write_run(tmp_path / "r", block_rows(0, 0, "disaggregated", ways))))


def test_stages_of_a_moved_request(frame: pd.DataFrame) -> None:
    row = frame.iloc[0]
    assert [row[name] for name in STAGE_TIMES] == pytest.approx([0.010, 0.020, 0.006, 0.004, 0.0251])
    assert row["e2e_s"] == pytest.approx(sum(row[name] for name in STAGE_TIMES))
    assert row["ttft_s"] == pytest.approx(0.0301)
    assert row["ttft_prefill_s"] == pytest.approx(0.030)
    assert row["ttft_decode_s"] == pytest.approx(0.040)
    assert row["transfer_s"] == pytest.approx(0.025)
    assert row["tpot_s"] == pytest.approx(0.035 / 3)
    assert row["max_gap_s"] == row["tbt_tail_s"] == pytest.approx(0.015)
    assert row["lateness_s"] == pytest.approx(0.001)
    assert row["length"] == "1-128"
    assert frame.iloc[1]["length"] == "513-2048"


def test_the_residual_is_shown_and_flagged_beyond_two_percent(frame: pd.DataFrame) -> None:
    assert frame["residual_s"].iloc[0] == pytest.approx(0.0001)
    assert not frame["residual_flag"].iloc[0]
    assert frame["residual_s"].iloc[1] == pytest.approx(0.005)
    assert frame["residual_flag"].iloc[1]


def test_delivery_to_the_client_is_a_stage_of_its_own(tmp_path: Path) -> None:
    rows = block_rows(0, 0, "colocated", [(100, Way(to_first=5))])
    rows = [replace(r, emitted_ns=r.t_ns - 4_000_000) if isinstance(r, TokenRow) else r for r in rows]
    row = request_frame(load_run(write_run(tmp_path / "r", rows))).iloc[0]
    assert row["delivery_s"] == pytest.approx(0.004)
    assert row["residual_s"] == pytest.approx(0.001)
    assert row["residual_flag"]


def test_a_first_token_from_the_decode_rank_is_explained_by_the_hand_off(tmp_path: Path) -> None:
    rows = block_rows(0, 0, "disaggregated", [(100, Way(exposed=6, admission=4, to_first=10, moved=True))])
    ends = [r for r in rows if isinstance(r, StageRow) and r.stage == "prefill_end"]
    rows = [r for r in rows if r not in ends] + [StageRow(0, 0, "prefill_end", 7, ends[0].t_ns)]
    row = request_frame(load_run(write_run(tmp_path / "r", rows))).iloc[0]
    assert row["residual_s"] == pytest.approx(0.0)


def test_failed_and_unfinished_requests_stay(frame: pd.DataFrame) -> None:
    assert list(frame["status"]) == ["finished", "finished", "failed", "unfinished", "finished"]
    assert frame["reason"].iloc[2] == "rank 1: out of KV blocks"
    assert frame.iloc[2:4]["ttft_s"].isna().all()
    assert list(frame["num_tokens"]) == [4, 3, 0, 0, 1]


def test_one_token_has_no_gap(frame: pd.DataFrame) -> None:
    assert frame.iloc[4][["tpot_s", "max_gap_s", "tbt_tail_s"]].isna().all()
    assert frame.iloc[4]["decode_s"] == pytest.approx(0.0)


def test_gaps_agree_with_the_metric_of_each_request(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    ways = [(100, Way(gaps=tuple(generator.uniform(5, 40, size=n)))) for n in (1, 5, 30, 31)]
    run = load_run(write_run(tmp_path / "r", block_rows(0, 0, "colocated", ways)))
    gaps, frame = order_tokens(run).gaps, request_frame(run)
    for request_id, (_, way) in enumerate(ways):
        own = gaps.of(np.array([request_id]))
        assert list(own) == pytest.approx([gap / 1000 for gap in way.gaps], abs=1e-6)
        assert frame["tbt_tail_s"].iloc[request_id] == pytest.approx(metrics.tbt_tail_s(own))
        assert frame["max_gap_s"].iloc[request_id] == own.max()


def test_a_run_without_rows_gives_an_empty_frame(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", [], done=False), allow_partial=True)
    assert request_frame(run).empty
    assert not len(order_tokens(run).gaps.seconds)


@pytest.mark.parametrize("part", [3, metrics.PART])
@pytest.mark.parametrize("damage", ["none", "shuffled", "a token twice", "a token missing", "a stranger's tokens"])
def test_tokens_are_put_in_request_order_whatever_the_log_holds(
    tmp_path: Path, damage: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PART", part)
    ways = [(100, Way(gaps=(10, 20, 30))), (100, Way(failed="x")), (100, Way(gaps=(5, 6)))]
    run = load_run(write_run(tmp_path / "r", block_rows(0, 0, "colocated", ways)))
    table = run.tables["tokens"]
    changed = {
        "none": table,
        "shuffled": table.sample(frac=1, random_state=1, ignore_index=True),
        "a token twice": pd.concat([table, table.iloc[[1]]], ignore_index=True),
        "a token missing": table.drop(index=0).reset_index(drop=True),
        "a stranger's tokens": pd.concat([table.assign(request_id=7), table], ignore_index=True),
    }[damage]
    run.tables["tokens"] = changed
    tokens = order_tokens(run)
    ordered = changed.iloc[tokens.order]
    expected = changed[changed["request_id"] < 3].sort_values(["request_id", "index"], kind="stable")
    assert (
        ordered[["request_id", "index", "t_ns"]].to_numpy().tolist()
        == expected[["request_id", "index", "t_ns"]].to_numpy().tolist()
    )
    assert tokens.counts.tolist() == [int((expected["request_id"] == r).sum()) for r in range(3)]
    assert tokens.at_ns.tolist() == (expected["t_ns"] - run.tables["stages"]["t_ns"].min()).tolist()
    both = np.array([0, 1, 2])
    assert len(tokens.gap_ends_ns(both)) == len(tokens.gaps.of(both))
