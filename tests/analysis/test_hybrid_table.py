"""The hybrid arm in the tables: against the better pure arm per length class, and its decisions against what came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.compare import analyse
from analysis.hybrid import better_arm, decided_frame, finding, hybrid_runs_table, saved_s
from analysis.ledger import Comparison
from analysis.load import load_run
from analysis.results import Table
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd.economics.verdict import Interval
from xpyd.records import DecisionRow

# End to end 60 ms where a request stays, 54 ms where it moves.
STAYED = Way(queue=10, prefill=20, gaps=(10, 10, 10))
MOVED = Way(queue=10, prefill=20, exposed=4, gaps=(12, 6, 6), moved=True)
SHORT, LONG = 100, 600


def decision(block: int, request_id: int, moves: bool, attempt: int = 0) -> DecisionRow:
    """Reckoned 60 ms of its own if it stays, 50 ms if it moves; 5 ms are imposed on others."""
    ranks = (1, 2) if moves else (1, 1)
    stages = (0.010, 0.020, 0.005, 0.0, 0.015) if moves else (0.010, 0.020, 0.0, 0.0, 0.030)
    reason = "moving costs less" if moves else "staying costs less"
    return DecisionRow(block, request_id, attempt, moves, *ranks, *stages, 0.005, 0.065, 0.055, reason)


def comparison(folder: Path, hybrid: tuple[Way, Way], split: tuple[Way, Way] = (STAYED, MOVED)) -> Comparison:
    """Five pairs of a short and a long request; both stay in the colocated arm."""
    rows: list[Any] = []
    for pair in range(5):
        arms = {"colocated": (STAYED, STAYED), "disaggregated": split, "hybrid": hybrid}
        for place, (arm, (short, long)) in enumerate(arms.items()):
            block = 3 * pair + place
            rows += block_rows(block, pair, arm, [(SHORT, short), (LONG, long)])
            if arm == "hybrid":
                rows += [decision(block, number, way.moved) for number, way in enumerate(hybrid)]
    return Comparison(load_run(write_run(folder / "r", rows)))


SLOWER_SPLIT = (Way(queue=30, prefill=20, exposed=4, gaps=(14, 10, 10), moved=True), MOVED)


def table(found: Comparison, title: str) -> Table:
    return next(t for t in analyse(found.run).tables if t.title.startswith(title))


def test_it_is_held_against_the_better_arm_of_each_class(tmp_path: Path) -> None:
    """Short prompts stay and long ones move: as good as the better arm in each class, better than both over all."""
    found = comparison(tmp_path, (STAYED, MOVED), SLOWER_SPLIT)
    assert (better_arm(found, "1-128"), better_arm(found, "513-2048")) == ("colocated", "disaggregated")
    assert saved_s(found, "1-128", "disaggregated").mid == pytest.approx(0.024)
    assert saved_s(found, "513-2048", "colocated").mid == pytest.approx(0.006)
    rows = {row[0]: row for row in table(found, "Hybrid routing").rows}
    assert rows["1-128"][1:3] == ("colocated", "not worse")
    assert rows["513-2048"][1:3] == ("disaggregated", "not worse")
    assert rows["all"][1:5] == ("colocated", "better", "3 [3, 3] ms", "12 [12, 12] ms")
    assert [rows[length][5] for length in ("all", "1-128", "513-2048")] == ["50 %", "0 %", "100 %"]


def test_where_it_loses_it_says_so(tmp_path: Path) -> None:
    found = comparison(tmp_path, (STAYED, STAYED))
    rows = {row[0]: row for row in table(found, "Hybrid routing").rows}
    assert (*rows["513-2048"][1:3], rows["513-2048"][4]) == ("disaggregated", "WORSE", "-6 [-6, -6] ms")
    assert rows["1-128"][2] == "not worse"


def test_many_runs_are_judged_at_once(tmp_path: Path) -> None:
    """One loses for sure where prompts are long; another by so little that of four lines one may, by chance."""
    sure = comparison(tmp_path / "sure", (STAYED, STAYED))
    rows: list[Any] = []
    for pair, lost in enumerate((1, 3, 2, 5, 1)):
        arms = {"colocated": STAYED, "disaggregated": Way(queue=500, moved=True), "hybrid": Way(queue=10 + lost)}
        for place, (arm, way) in enumerate(arms.items()):
            rows += block_rows(3 * pair + place, pair, arm, [(SHORT, way)])
        rows.append(decision(3 * pair + 2, 0, moves=False))
    lucky = Comparison(load_run(write_run(tmp_path / "lucky", rows)))
    assert finding(saved_s(lucky, "all", "colocated")) == "WORSE"
    found = hybrid_runs_table([sure, lucky])
    lines = {row[:2]: row[2:] for row in found.rows}
    assert lines.keys() == {("r", "all"), ("r", "1-128"), ("r", "513-2048"), ("lucky", "all")}
    assert lines["r", "513-2048"] == ("disaggregated 54 ms", "60 ms", *["-6 [-6, -6] ms"] * 2, "WORSE", "0 %")
    assert lines["r", "1-128"][4] == lines["lucky", "all"][4] == "not worse"
    assert "those of all 4 lines hold together" in found.notes[0]
    assert found.notes[0].endswith("Found: 3.")  # the first run over all lengths, too


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        (Interval(1, 2, 3), "better"),
        (Interval(-1, 2, 3), "not worse"),
        (Interval(-3, -2, 1), "not worse"),
        (Interval(-3, -2, -1), "WORSE"),
        (Interval(float("nan"), 2, float("nan")), "no interval"),
    ],
)
def test_an_interval_in_words(interval: Interval, word: str) -> None:
    assert finding(interval) == word


def test_reckoned_against_measured(tmp_path: Path) -> None:
    found = comparison(tmp_path, (STAYED, MOVED))
    rows = {row[:2]: row[2:] for row in table(found, "Decisions, reckoned").rows}
    assert rows["stayed", "e2e"] == ("60 ms", "60 ms", "+0 %")
    assert rows["moved", "e2e"] == ("50 ms", "54 ms", "-7 %")
    assert rows["moved", "exposed_transfer"] == ("5 ms", "4 ms", "+25 %")
    details = next(t for t in analyse(found.run).details if t.title.startswith("Decisions of"))
    assert details.rows[1][2:] == (
        *("600", "4", "move", "moving costs less", "1 to 2"),
        *("65 ms", "55 ms", "50 ms", "54 ms"),
    )


def test_a_retried_request_shows_its_last_decision(tmp_path: Path) -> None:
    rows: list[Any] = block_rows(0, 0, "colocated", [(SHORT, STAYED)])
    rows += block_rows(1, 0, "disaggregated", [(SHORT, MOVED)]) + block_rows(2, 0, "hybrid", [(SHORT, MOVED)])
    rows += [decision(2, 0, moves=False), decision(2, 0, moves=True, attempt=1)]
    frame = decided_frame(Comparison(load_run(write_run(tmp_path / "r", rows))))
    assert frame["moves"].tolist() == [True]


def test_a_run_without_the_arm_has_none_of_its_tables(tmp_path: Path) -> None:
    rows: list[Any] = block_rows(0, 0, "colocated", [(SHORT, STAYED)])
    rows += block_rows(1, 0, "disaggregated", [(SHORT, MOVED)])
    results = analyse(load_run(write_run(tmp_path / "r", rows)))
    assert not [t for t in (*results.tables, *results.details) if "ybrid" in t.title or "Decisions" in t.title]


def test_bytes_of_an_arm_that_may_move(tmp_path: Path) -> None:
    found = table(comparison(tmp_path, (STAYED, MOVED)), "Bytes moved")
    assert {row[0]: row[1] for row in found.rows}["hybrid"].startswith("ledger = transport")
    stayed = table(comparison(tmp_path / "s", (STAYED, STAYED)), "Bytes moved")
    assert {row[0]: row[1] for row in stayed.rows}["hybrid"] == "nothing moved: every request stayed"


def test_only_pairs_that_the_arm_has_ended_count(tmp_path: Path) -> None:
    """A sixth pair without its hybrid block is left out of all three arms' figures."""
    rows: list[Any] = []
    for pair in range(6):
        slow = Way(queue=500) if pair == 5 else STAYED
        rows += block_rows(3 * pair, pair, "colocated", [(SHORT, slow)])
        rows += block_rows(3 * pair + 1, pair, "disaggregated", [(SHORT, slow)])
        if pair < 5:
            rows += [*block_rows(3 * pair + 2, pair, "hybrid", [(SHORT, STAYED)]), decision(3 * pair + 2, 0, False)]
    found = table(Comparison(load_run(write_run(tmp_path / "r", rows))), "Three arms")
    assert [row[-1] for row in found.rows] == ["60 ms", "60 ms", "60 ms"]
    assert [row[1] for row in found.rows] == ["1 /s", "1 /s", "1 /s"], "the slow requests miss their limit"
