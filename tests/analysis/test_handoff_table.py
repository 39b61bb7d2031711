"""The table of exposed shares by hand: medians, the floor beside them, the target in the answer, and the choices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis import handoff
from analysis.load import RunError, load_run
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd.records import CoalescingRow, TransferRow

WHOLE, LAYERWISE = Way(prefill=100, exposed=25, moved=True), Way(prefill=100, exposed=2, moved=True)
PREDICTED = {"513-2048": {"pull whole": {"floor_s": 0.02}, "pull layerwise": {"floor_s": 0.001}}}


def rows(num_repeats: int = 5) -> list[Any]:
    """Two modes in each repeat, two hand-offs of each."""
    made = []
    for repeat in range(num_repeats):
        for which, (mode, way) in enumerate((("whole", WHOLE), ("layerwise", LAYERWISE))):
            for row in block_rows(2 * repeat + which, repeat, "disaggregated", [(1024, way)] * 2):
                made.append(replace(row, mode=mode) if isinstance(row, TransferRow) else row)
    return made


def analysed(folder: Path, more: list[Any]) -> Any:
    config = {"experiment": "handoff"}
    return handoff.analyse(load_run(write_run(folder / "run", [*rows(), *more], config, predicted=PREDICTED)))


def test_shares_and_floors_by_hand(tmp_path: Path) -> None:
    results = analysed(tmp_path, [])
    (table,) = results.tables
    assert [row[:1] + row[3:] for row in table.rows] == [
        ("pull whole", "25 ms", "25 [25, 25] %", "20 ms", "20 %"),
        ("pull layerwise", "2 ms", "2 [2, 2] %", "1 ms", "1 %"),
    ]
    assert results.answer == "Layer by layer, 2 % of prefill is exposed: within the target of 3 %."
    assert results.frame["penalty_ratio"].tolist() == pytest.approx([0.25, 0.02])
    assert results.frame["num_handoffs"].tolist() == [10, 10]


def test_a_layerwise_share_above_the_target_is_said(tmp_path: Path) -> None:
    slow = replace(LAYERWISE, exposed=5)
    made = [row for n in range(5) for row in block_rows(n, n, "disaggregated", [(1024, slow)])]
    run = load_run(write_run(tmp_path / "run", made, {"experiment": "handoff"}))
    assert handoff.analyse(run).answer == "Layer by layer, 5 % of prefill is exposed: above the target of 3 %."
    assert handoff.analyse(run).tables[0].rows[0][-1] == "-", "nothing was predicted"


def test_choices_are_told_with_their_reason(tmp_path: Path) -> None:
    chosen = [CoalescingRow(0, n, 1 << 20, 96, 1, 0.02, 0.01, True, "95 pieces fewer") for n in range(2)]
    _, table = analysed(tmp_path, chosen).tables
    assert table.rows == [("staged", "2", "1 MiB", "96", "1", "20 ms", "10 ms", "124 ms")]
    assert table.notes[0] == "Staged, such as request 1 (1 MiB): 95 pieces fewer."


def test_a_run_without_hand_offs_is_refused(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "run", block_rows(0, 0, "colocated", [(64, Way())])))
    with pytest.raises(RunError, match="no KV was handed off"):
        handoff.analyse(run)
