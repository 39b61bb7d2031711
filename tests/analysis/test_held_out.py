"""Break-even maps and held-out runs on planted folders: classes, agreement by hand, errors by hand, and refusals."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import log
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import break_even, held_out, validate
from analysis.format import NONE
from analysis.load import RunError, load_run
from analysis.machine_speed import beside_transfers
from analysis.report import main as report
from tests.analysis.synthetic import CONFIG, Way, block_rows, write_run
from xpyd.break_even import FAST, FIGURES, SIMULATOR, SLOW
from xpyd.economics.break_even import SPLIT, STAY, UNDECIDED
from xpyd.economics.cost import ComputePoint
from xpyd.economics.frozen import sealed
from xpyd.records import BreakEvenRow

FROZEN_AT, LATER, EARLIER = "2026-11-21T12:00:00.000000", "2026-11-21T12:00:01.000000", "2026-11-21T11:59:59.000000"
CONDITIONS = {"model": {"name": "tiny", "num_layers": 4}, "slo": CONFIG["slo"], "workload": {"num_requests": 2}}
INPUT, OUTPUT, RATE = 64, 4, 8.0
# TTFT and ITL of the planted runs are 30 ms and 10 or 20 ms; both requests of a block of a second meet the limits.
TRUE = {"ttft_p50_s": 0.030, "ttft_p99_s": 0.030, "itl_p50_s": 0.010, "itl_p99_s": 0.010, "goodput_rps": 2.0}


def cell(link_gbps: float, answer: str, factor: float = 1.0) -> dict[str, Any]:
    """A frozen cell; the simulator says ``factor`` times what the planted disaggregated arm shows."""
    saved = {SPLIT: 0.03, STAY: -0.03, UNDECIDED: 0.0}[answer]
    figures = {SIMULATOR: {"disaggregated": {name: factor * TRUE[name] for name in FIGURES}}}
    interval = {"low": saved - 0.001, "mid": saved, "high": saved + 0.001}
    where = {"output_len": OUTPUT, "rate_rps": RATE, "input_len": INPUT, "link_gbps": link_gbps}
    parts = {"win_s": 0.03, "bill_s": 0.03 - saved, "pools_s": 0.0, "margin_s": 0.001}
    return {**where, "answer": answer, "saved": interval, **parts, "figures": figures}


def frozen_map(folder: Path, *cells: dict[str, Any], **changes: Any) -> Path:
    compute = {"base_s": 0.004, "prefill_token_s": 0.0, "prefill_pair_s": 1e-3 / 520, "decode_seq_s": 0.0}
    costs = {"compute": {**compute, "context_token_s": 0.0}}
    content = {"costs": costs, "written_at": FROZEN_AT, "criterion": "ledger", "band": 0.1, "conditions": CONDITIONS}
    path = folder / "prediction.json"
    path.write_text(json.dumps(sealed({**content, "cells": list(cells), **changes}), indent=1))
    return path


def measured(folder: Path, link_gbps: float, saved_ms: float, started: str = LATER, **config: Any) -> Path:
    """A comparison that saves so many ms per request in each of five pairs, in the decode alone."""
    rows: list[Any] = []
    for pair in range(5):
        slow = Way(gaps=(10 + saved_ms / 3,) * 3)
        rows += block_rows(2 * pair, pair, "colocated", [(INPUT, slow)] * 2)
        rows += block_rows(2 * pair + 1, pair, "disaggregated", [(INPUT, Way(moved=True))] * 2)
    arrival = {"kind": "poisson", "rate_rps": RATE}
    workload = {"num_requests": 2, "seed": 0, "input_len": INPUT, "output_len": OUTPUT, "arrival": arrival}
    settings = {"fabric": {"rate_gbps": link_gbps}, "workload": workload, **config}
    return write_run(folder, rows, settings, {"started_at": started})


def test_agreement_is_counted_and_the_misclassified_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [cell(1.0, STAY), cell(2.0, SPLIT), cell(5.0, UNDECIDED), cell(10.0, SPLIT), cell(25.0, SPLIT)]
    path = frozen_map(tmp_path, *cells)
    saved = {1.0: -15.0, 2.0: -15.0, 5.0: 15.0, 10.0: 15.0, 25.0: 0.0}
    runs = [measured(tmp_path / f"run{link}", link, ms) for link, ms in saved.items()]
    results = held_out.analyse({path: break_even.read_map(path)}, [load_run(run) for run in runs])
    assert [row[3] for row in results.tables[0].rows] == [
        "agrees",
        "misclassified",
        "undecided by the map",
        "agrees",
        "undecided by the run",
    ]
    assert results.answer == (
        "2 of 3 decided cells agree; apart from these 1 undecided by the map, 1 undecided by the run."
    )
    assert "Misclassified: 2 Gb/s, 64 in, 4 out, 8 /s." in results.because
    assert held_out.main([str(path), str(runs[1])]) == 0
    assert "Misclassified: 2 Gb/s" in capsys.readouterr().out


def test_errors_are_signed_and_the_worst_cell_is_first(tmp_path: Path) -> None:
    path = frozen_map(tmp_path, cell(1.0, SPLIT, factor=0.8), cell(2.0, SPLIT, factor=1.5))
    runs = [load_run(measured(tmp_path / f"run{link}", link, 15.0)) for link in (1.0, 2.0)]
    results = held_out.analyse({path: break_even.read_map(path)}, runs)
    _, means, signed, worst, steps = results.tables
    assert list(means.rows[0]) == ["simulator", "disaggregated", *["35 %"] * 5], "of -20 % and +50 %"
    assert means.rows[-1] == ("target", "", "10 %", "10 %", "15 %", "15 %", "10 %")
    assert [row[2:] for row in signed.rows] == [("-20 %",) * 5, ("+50 %",) * 5]
    assert worst.rows[0][0] == "2 Gb/s, 64 in, 4 out, 8 /s"
    assert worst.rows[0][-1] == "+50 %"
    # Steps of one prompt of 64 tokens last 20 ms; 4 ms and 2080 pairs of 1/520 ms each are 8.
    assert [row[1:4] for row in steps.rows] == [(NONE, "2.50 to 2.50", "2.50")] * 2
    assert len(results.frame) == 10


def test_what_both_arms_have_in_common_cancels_in_their_ratio(tmp_path: Path) -> None:
    """The machine is half as fast as predicted: the arms are 50 % off, one over the other is not, and is in range.

    Of the interval that was frozen for TTFT p50, 30 ms lie inside in one arm, and just outside in the other.
    """
    # ITL of the planted arms: 15 and 10 ms.
    true = {"colocated": {**TRUE, "itl_p50_s": 0.015, "itl_p99_s": 0.015}, "disaggregated": TRUE}
    timed = [name for name in FIGURES if name != "goodput_rps"]

    def said(factor: float) -> dict[str, dict[str, float]]:
        return {arm: own | {name: factor * own[name] for name in timed} for arm, own in true.items()}

    figures = {SIMULATOR: said(0.5), FAST: said(0.4), SLOW: said(0.6)}
    ranges = {
        "colocated": {"ttft_p50_s": (0.009, 0.0299), "goodput_rps": (1.9, 2.1)},
        "disaggregated": {"ttft_p50_s": (0.009, 0.0301)},
        "split over colocated": dict.fromkeys(FIGURES, (0.5, 1.5)),
    }
    # Steps take 2.5 times as long as the planted costs say, and the slow end of the map is 2.5 squared.
    drift = {"off": 2 * log(2.5)}
    path = frozen_map(tmp_path, {**cell(1.0, SPLIT), "figures": figures, "ranges": ranges}, drift=drift)
    run = measured(tmp_path / "run", 1.0, 15.0)
    # A prompt of 64 tokens takes 8 ms by the planted costs; before the first request it took the run as long.
    point = asdict(ComputePoint(0.008, 64, 0, 0, 0))
    (run / "predicted.json").write_text(json.dumps({"points": {"steps": [point]}}))
    results = held_out.analyse({path: break_even.read_map(path)}, [load_run(run)])
    means, covered = results.tables[1:3]
    assert [row[:2] for row in means.rows] == [
        ("simulator", "colocated"),
        ("simulator", "disaggregated"),
        ("simulator", "split over colocated"),
        ("simulator at the speed seen first", "colocated"),
        ("simulator at the speed seen first", "disaggregated"),
        ("simulator at the speed seen first", "split over colocated"),
        ("simulator at the run's speed", "colocated"),
        ("simulator at the run's speed", "disaggregated"),
        ("simulator at the run's speed", "split over colocated"),
        ("target", ""),
    ]
    assert means.rows[3][2] == "50 %", "as fast as usual before the first request"
    assert means.rows[6][2] == "45 %", "half way between what is said of the usual machine, 50 %, and of the slow, 40 %"
    own = results.frame[results.frame["predictor"] == SIMULATOR]
    errors = own.pivot(index="arm", columns="figure", values="error_pct").round(6)
    assert (errors.loc[["colocated", "disaggregated"], timed] == -50).all(axis=None)
    assert (errors["goodput_rps"] == 0).all()
    assert (errors.loc["split over colocated"] == 0).all()
    assert covered.rows == [
        ("colocated", "0 of 1", *["0 of 0"] * 3, "1 of 1", "1 of 2", "37 %"),
        ("disaggregated", "1 of 1", *["0 of 0"] * 4, "1 of 1", "70 %"),
        ("split over colocated", *["1 of 1"] * 5, "5 of 5", "50 %"),
    ]


def test_each_run_is_held_against_the_last_map_before_it(tmp_path: Path) -> None:
    times = ("2026-11-21T11:00:00.000000", FROZEN_AT, "2026-11-21T13:00:00.000000")
    maps = {}
    for hour, (written_at, factor) in enumerate(zip(times, (0.5, 0.8, 2.0), strict=True)):
        (tmp_path / str(hour)).mkdir()
        path = frozen_map(tmp_path / str(hour), cell(1.0, SPLIT, factor), written_at=written_at)
        maps[path] = break_even.read_map(path)
    run = measured(tmp_path / "run", 1.0, 15.0)
    held = held_out.hold(maps, load_run(run))
    assert held.content["written_at"] == FROZEN_AT, "not the one before, and none that came after"
    folders = [str(tmp_path / str(hour)) for hour in range(3)]
    assert held_out.main([*folders, str(run)]) == 0
    assert held_out.main(folders) == 2
    early = load_run(measured(tmp_path / "early", 1.0, 15.0, started="2026-11-21T10:00:00.000000"))
    with pytest.raises(RunError, match=r"is not held out; measure again \(and 2 other maps"):
        held_out.hold(maps, early)


def test_runs_of_one_cell_are_told_apart_in_the_order_that_they_began(tmp_path: Path) -> None:
    path = frozen_map(tmp_path, cell(1.0, SPLIT))
    last = load_run(measured(tmp_path / "a", 1.0, 15.0, started="2026-11-21T13:00:00.000000"))
    first = load_run(measured(tmp_path / "b", 1.0, -15.0))
    results = held_out.analyse({path: break_even.read_map(path)}, [last, first])
    name = "1 Gb/s, 64 in, 4 out, 8 /s"
    assert [row[0] for row in results.tables[0].rows] == [name, f"{name}, run 2"]
    assert [row[3] for row in results.tables[0].rows] == ["misclassified", "agrees"]
    again = results.frame[results.frame["predictor"] == validate.EARLIER]
    assert set(again["cell"]) == {f"{name}, run 2"}, "nothing comes before the first"
    errors = again.set_index(["arm", "figure"])["error_pct"].round(6)
    assert errors["disaggregated", "itl_p50_s"] == 0
    assert errors["colocated", "itl_p50_s"] == round(100 * (5 - 15) / 15, 6), "gaps of 5 ms, then of 15"
    assert errors["split over colocated", "itl_p50_s"] == round(100 * (10 / 5 - 10 / 15) / (10 / 15), 6)


def test_a_step_is_beside_a_transfer_of_its_own_rank_while_both_last() -> None:
    """Steps of 10 ms at 0, 10, 20, ...; KV moves from rank 1 to rank 2 from 12 to 35 ms of block 0."""
    ms = 1_000_000
    steps = pd.DataFrame(
        [
            {"block": block, "rank": rank, "role": role, "begin_ns": t * ms, "end_ns": (t + 10) * ms}
            for block in (0, 1)
            for rank, role in ((1, "prefill"), (2, "decode"), (3, "decode"))
            for t in range(0, 50, 10)
        ]
    )
    moved = {"block": 0, "src_rank": 1, "dst_rank": 2, "begin_ns": 12 * ms, "end_ns": 35 * ms}
    found = steps[beside_transfers(steps, pd.DataFrame([moved]))]
    assert set(found["block"]) == {0}
    assert [(row.rank, row.begin_ns // ms) for row in found.itertuples()] == [
        (rank, t) for rank in (1, 2) for t in (10, 20, 30)
    ]


@pytest.mark.parametrize(
    ("link_gbps", "changes", "message"),
    [
        (
            1.0,
            {"started": EARLIER},
            r"run: began 2026-11-21T11:59:59.* the map .*prediction\.json was frozen .*12:00:00",
        ),
        (3.0, {}, r"fabric\.rate_gbps=3\.0.* is no cell of the map"),
        (1.0, {"slo": {"ttft_s": 9.0, "itl_s": 0.05}}, r"slo\.ttft_s=9\.0, the map .* holds for 0\.5"),
    ],
)
def test_a_run_that_says_nothing_of_the_map_is_refused(
    tmp_path: Path, link_gbps: float, changes: dict[str, Any], message: str
) -> None:
    path = frozen_map(tmp_path, cell(1.0, SPLIT))
    run = load_run(measured(tmp_path / "run", link_gbps, 15.0, **changes))
    with pytest.raises(RunError, match=message):
        held_out.hold({path: break_even.read_map(path)}, run)


def test_a_changed_map_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = frozen_map(tmp_path, cell(1.0, STAY))
    run = measured(tmp_path / "run", 1.0, 15.0)
    path.write_text(path.read_text().replace(f'"{STAY}"', f'"{SPLIT}"'))
    assert held_out.main([str(path), str(run)]) == 2
    assert "changed after it was frozen" in capsys.readouterr().err


def map_run(folder: Path, cells: list[dict[str, Any]] | None) -> Path:
    """A break_even run of one load over three links; frozen with ``cells``, or without them not to its end."""
    rows = []
    for link_gbps, saved in ((1.0, -0.1), (10.0, 0.1), (100.0, 0.2)):
        for pair in range(5):
            stages = (0.0, 0.1, 0.0, 0.0)
            for arm, decode_s in (("colocated", 0.5 + saved), ("disaggregated", 0.5)):
                figures = (0.1, 0.1, 0.01, 0.01, 2.0)
                where = (link_gbps, INPUT, RATE, OUTPUT)
                rows.append(BreakEvenRow(*where, SIMULATOR, pair, arm, *stages, decode_s, *figures))
    settings = {"experiment": "break_even", "break_even": {"criterion": "ledger", "band": 0.1}}
    run = write_run(folder, rows, settings, {"labels": ["modeled"]}, done=cells is not None)
    if cells is not None:
        frozen_map(folder, *cells)
    return run


def test_the_map_of_a_run_and_its_page(tmp_path: Path) -> None:
    path = map_run(tmp_path / "run", [cell(1.0, STAY), cell(10.0, SPLIT), cell(100.0, UNDECIDED)])
    results = break_even.analyse(load_run(path))
    assert results.answer == "Modeled: splitting pays in 1 of 3 cells, does not in 1, and 1 are undecided."
    assert results.tables[0].rows == [("4", "8", "64", "about 3.16 Gb/s", "no", "split", "?")]
    assert "modeled" in results.tables[0].title
    assert set(results.frame["source"]) == {"modeled"}
    assert report([str(path)]) == 0
    page = (path / "report.html").read_text()
    assert "Where splitting pays" in page
    assert 'aria-label="Where splitting pays"' in page


def test_a_map_that_was_stopped_shows_what_was_played(tmp_path: Path) -> None:
    results = break_even.analyse(load_run(map_run(tmp_path / "run", None), allow_partial=True))
    assert results.tables[0].rows == [("4", "8", "64", "about 3.16 Gb/s", "no", "split", "split")]
    assert "Not frozen: not all played" in results.because


@pytest.mark.parametrize(
    ("saved", "words"),
    [((0.1, 0.2), "below 1 Gb/s"), ((-0.1, -0.2), "not up to 100 Gb/s"), ((-0.1, 0.1), "about 10 Gb/s")],
)
def test_the_break_even_link_lies_between_two_of_the_map(saved: tuple[float, float], words: str) -> None:
    cells = [break_even.mapped(cell(link, SPLIT)) for link in (1.0, 100.0)]
    planted = [
        break_even.Mapped(each.cell, each.answer, type(each.saved)(mid, mid, mid), 0.0, 0.0, 0.0)
        for each, mid in zip(cells, saved, strict=True)
    ]
    assert break_even.break_even_gbps(planted) == words
