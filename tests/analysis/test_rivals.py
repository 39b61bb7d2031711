"""Two colocated rivals in one comparison: both are printed, and splitting is held against the better one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.compare import analyse
from analysis.ledger import Comparison
from analysis.load import Run, load_run
from analysis.rivals import rivals_table
from tests.analysis.synthetic import Way, block_rows, write_run

CONFIGURED = {"policy": "chunked", "max_num_batched_tokens": 256, "max_num_seqs": 32}
TUNED = {"policy": "chunked", "max_num_batched_tokens": 64, "max_num_seqs": 8}
# End to end 60 ms, 48 ms and 54 ms.
SLOW = Way(queue=10, prefill=20, gaps=(10, 10, 10))
FAST = Way(queue=10, prefill=20, gaps=(6, 6, 6))
SPLIT = Way(queue=10, prefill=20, exposed=4, gaps=(10, 7, 7), moved=True)


def run_of(folder: Path, colocated: Way, tuned: Way | None, made_for: bool = True) -> Run:
    rows: list[Any] = []
    for pair in range(5):
        arms = {"colocated": colocated, "colocated_tuned": tuned, "disaggregated": SPLIT, "null": tuned or colocated}
        for place, (arm, way) in enumerate(arms.items()):
            if way is not None:
                rows += block_rows(4 * pair + place, pair, arm, [(100, way), (600, way)])
    config: dict[str, Any] = {"scheduler": CONFIGURED, "rival": {"use": "configured", "scheduler": None}}
    if tuned is not None:
        config["rival"] = {"use": "tuned", "scheduler": TUNED, "made_for": {"model": "x"} if made_for else {}}
    return load_run(write_run(folder / "r", rows, config))


@pytest.mark.parametrize(
    ("colocated", "tuned", "rival", "net"),
    [(SLOW, FAST, "colocated_tuned", -0.006), (FAST, SLOW, "colocated", -0.006), (SLOW, None, "colocated", 0.006)],
)
def test_the_ledger_is_against_the_better_rival(
    tmp_path: Path, colocated: Way, tuned: Way | None, rival: str, net: float
) -> None:
    found = Comparison(run_of(tmp_path, colocated, tuned))
    assert found.rival == rival
    assert found.line("all", "net_s").measured.mid == pytest.approx(net)
    assert found.line("all", "net_s").null.mid == pytest.approx(0), "the null control repeats the tuned arm"


def test_both_rivals_are_printed_with_their_settings(tmp_path: Path) -> None:
    results = analyse(run_of(tmp_path, SLOW, FAST))
    table = next(table for table in results.tables if table.title.startswith("Colocated rivals"))
    configured, tuned = table.rows
    assert configured[:4] == ("configured", "chunked", "256", "32")
    assert tuned[:4] == ("tuned", "chunked", "64", "8")
    assert (configured[-2:], tuned[-2:]) == (("6 [6, 6] ms", ""), ("-6 [-6, -6] ms", "in the ledger"))
    assert any("Tuning saves 12 [12, 12] ms" in note for note in table.notes)
    ledger = next(table for table in results.tables if table.title.startswith("Ledger, all lengths"))
    assert "colocated_tuned" in ledger.columns
    invariance = next(table for table in results.tables if table.title.startswith("Output invariance"))
    assert next(row[0] for row in invariance.rows) == "colocated_tuned against colocated"


def test_a_rival_without_a_fingerprint_says_so(tmp_path: Path) -> None:
    notes = rivals_table(Comparison(run_of(tmp_path, SLOW, FAST, made_for=False))).notes
    assert any("no fingerprint" in note for note in notes)


def test_an_untuned_rival_is_called_so(tmp_path: Path) -> None:
    (row,), notes = (table := rivals_table(Comparison(run_of(tmp_path, SLOW, None)))).rows, table.notes
    assert row[0] == "configured"
    assert notes[0].startswith("NOT TUNED")


def test_the_prediction_is_of_the_rival_in_the_ledger(tmp_path: Path) -> None:
    run = run_of(tmp_path, SLOW, FAST)
    stages = ("queue_s", "prefill_s", "exposed_transfer_s", "admission_s", "decode_s")
    arms = {"colocated": 0.03, "colocated_tuned": 0.02, "disaggregated": 0.01}
    classes = {arm: {**dict.fromkeys(stages, 0.0), "decode_s": value} for arm, value in arms.items()}
    run.predicted.update(dict.fromkeys(("1-128", "513-2048"), classes))
    assert Comparison(run).line("all", "net_s").modeled == pytest.approx(0.01)
