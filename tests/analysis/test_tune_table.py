"""The table of a ``tune`` run, from rows with known ratios."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.format import NONE
from analysis.load import Run, RunError
from analysis.tune import analyse, candidates
from xpyd.records import TABLES

BEGIN, BETTER = {"A": "1"}, {"A": "1", "B": "2"}


def rows(axis: str, number: int, name: str, settings: dict[str, str], seconds: float, refused: str = "") -> list[dict]:
    first = name in ("as it was", "start")
    common = {
        "round": number,
        "axis": axis,
        "candidate": name,
        "reference": first,
        "settings": json.dumps(settings, sort_keys=True),
        "src_rank": 1,
        "dst_rank": 2,
        "transport": "ucx",
        "payload_bytes": 1_000_000,
        "refused": refused,
    }
    if refused:
        return [{**common, "piece_bytes": 0, "repeat": 0, "seconds": 0.0}]
    # Repeat 2 is three times as slow for everyone; the large pieces take half of the small ones' time.
    slow = [1, 1, 3, 1, 1]
    return [
        {**common, "piece_bytes": size, "repeat": repeat, "seconds": seconds * factor / part}
        for repeat, factor in enumerate(slow)
        for part, size in enumerate((1000, 2000), start=1)
    ]


def run_of(*parts: list[dict]) -> Run:
    tables = {name: pd.DataFrame() for name in TABLES}
    tables["tune"] = pd.DataFrame([row for part in parts for row in part])
    config = {"experiment": "tune", "fabric": {"name": "tcp"}, "transport": {"name": "ucx"}}
    return Run((Path("runs/tune/x"),), config, {"labels": ["CPU"]}, predicted={}, tables=tables, partial=False)


PARTS = [
    rows("b", 0, "as it was", BEGIN, 1.0),
    rows("b", 0, "two", BETTER, 0.5),
    rows("b", 0, "no", {"A": "1", "B": "fish"}, 0.0, "UCX does not start"),
    rows("c", 1, "as it was", BETTER, 0.5),
    rows("c", 1, "three", {**BETTER, "C": "3"}, 1.0),
    rows("final", 2, "start", BEGIN, 1.0),
    rows("final", 2, "tuned", BETTER, 0.5),
    rows("final", 2, "UCX's defaults", {}, 4.0),
]


def test_candidates_carry_paired_ratios_and_what_was_adopted() -> None:
    found = {(each.axis, each.name): each for each in candidates(run_of(*PARTS).tables["tune"])}
    assert found["b", "two"].ratio.mid == pytest.approx(2.0)
    assert found["c", "three"].ratio.mid == pytest.approx(0.5)
    assert found["final", "UCX's defaults"].ratio.mid == pytest.approx(0.25)
    assert found["b", "two"].rates == pytest.approx({1000: 2e6, 2000: 4e6})
    assert [key for key, each in found.items() if each.adopted] == [("b", "two")]


def test_the_answer_is_the_final_round() -> None:
    results = analyse(run_of(*PARTS))
    assert results.answer == "The tuned settings are 2 [2, 2] times as fast as fabric=tcp."
    assert "b=two (2)" in results.because
    table = results.tables[0]
    assert table.rows[2][-2:] == (NONE, "refused")
    assert any("UCX does not start" in note for note in table.notes)


def test_noise_alone_is_no_gain() -> None:
    noisy = rows("final", 2, "tuned", BETTER, 1.0)
    for row in noisy:
        row["seconds"] *= 4.0 if row["repeat"] % 2 else 0.25
    results = analyse(run_of(*PARTS[:5], rows("final", 2, "start", BEGIN, 1.0), noisy))
    assert results.answer.startswith("No clear gain: the tuned settings are 1.32 [")  # 4 ** ((3 - 2) / 5)


def test_a_search_that_did_not_end_says_so() -> None:
    assert analyse(run_of(*PARTS[:5])).answer == "The search did not end: no preset."
    with pytest.raises(RunError, match="no candidate was timed"):
        analyse(run_of(PARTS[2]))
