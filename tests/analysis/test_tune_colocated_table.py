"""The table of a ``tune_colocated`` run, from rows with known figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis.format import NONE
from analysis.load import Run, RunError
from analysis.tune_colocated import analyse, tried
from xpyd.records import TABLES

START, BETTER, WORSE = "chunked 256 x 32", "chunked 64 x 8", "prefill_first 256 x 32"
CONFIG: dict[str, Any] = {
    "experiment": "tune_colocated",
    "model": {"name": "tiny"},
    "placement": {"num_prefill": 1, "num_decode": 1, "num_colocated": 0},
    "search": {"objective": ["goodput_rps", "itl_p99_s"]},
}


def rows(number: int, name: str, gaps_ms: list[float], first: int, final: bool = False) -> list[dict[str, Any]]:
    policy, chunk, _, batch = name.split()
    return [
        {
            "round": number,
            "final": final,
            "candidate": name,
            "start": name == START,
            "policy": policy,
            "max_num_batched_tokens": int(chunk),
            "max_num_seqs": int(batch),
            "repeat": first + place,
            "block": 0,
            "goodput_rps": 4.0,
            "attainment": 1.0,
            "itl_p99_s": gap / 1000,
            "ttft_p99_s": 0.2,
            "e2e_mean_s": 1.0,
        }
        for place, gap in enumerate(gaps_ms)
    ]


# The machine is slower in every later repeat, for both alike.
PARTS = [
    rows(0, START, [50], 0),
    rows(0, BETTER, [30], 0),
    rows(0, WORSE, [90], 0),
    rows(1, START, [50, 60, 70, 80, 90], 1, final=True),
    rows(1, BETTER, [30, 40, 50, 60, 70], 1, final=True),
]


def run_of(folder: Path, *parts: list[dict[str, Any]], preset: str = "") -> Run:
    tables = {name: pd.DataFrame() for name in TABLES}
    tables["tune_colocated"] = pd.DataFrame([row for part in parts for row in part])
    if preset:
        (folder / "rival").mkdir()
        policy, chunk, _, batch = preset.split()
        settings = {"policy": policy, "max_num_batched_tokens": int(chunk), "max_num_seqs": int(batch)}
        (folder / "rival" / "tuned.yaml").write_text(yaml.safe_dump({"scheduler": settings}))
    return Run((folder,), CONFIG, {"labels": ["CPU"]}, predicted={}, tables=tables, partial=False)


def test_changes_are_paired_by_repeat(tmp_path: Path) -> None:
    found = {(each.round, each.name): each for each in tried(run_of(tmp_path, *PARTS).tables["tune_colocated"])}
    change = found[1, BETTER].changes["itl_p99_s"]
    assert (change.low, change.mid, change.high) == pytest.approx((-0.02, -0.02, -0.02))
    assert [key for key, each in found.items() if each.went_on] == [(0, START), (0, BETTER)]


def test_the_answer_names_what_the_preset_holds(tmp_path: Path) -> None:
    results = analyse(run_of(tmp_path, *PARTS, preset=BETTER))
    assert results.answer.startswith(f"The tuned rival is {BETTER}. {BETTER} against {START}: goodput_rps 0 [0, 0] /s")
    assert "itl_p99 -20 [-20, -20] ms" in results.answer
    (table,) = results.tables
    assert [row[-1] for row in table.rows] == ["start", "went on", "", "start", ""]
    assert [row[-3] for row in table.rows] == [NONE, "-20 ms", "40 ms", NONE, "-20 [-20, -20] ms"]


def test_a_start_that_stays_is_told(tmp_path: Path) -> None:
    assert analyse(run_of(tmp_path, *PARTS, preset=START)).answer.startswith(f"The start stays: {BETTER} was no better")


def test_a_search_that_did_not_end_says_so(tmp_path: Path) -> None:
    assert analyse(run_of(tmp_path, *PARTS[:3])).answer == "The search did not end: no preset."
    with pytest.raises(RunError, match="no candidate has played"):
        analyse(run_of(tmp_path))
