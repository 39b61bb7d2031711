"""The tables of expert parallelism by hand: speed-up by repeat, bytes between nodes and what the placement saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis import expert_parallel
from analysis.load import Run, RunError, load_run
from tests.analysis.synthetic import write_run
from xpyd.records import ExpertRow

STEP_S = {"one rank": 0.040, "contiguous": 0.030, "overlapped": 0.025, "placed": 0.020}
BYTES = {"one rank": (0, 0), "contiguous": (4096, 3000), "overlapped": (4096, 3000), "placed": (4096, 1200)}


def rows(widths: tuple[int, ...] = (1, 2), num_nodes: int = 2) -> list[Any]:
    return [
        ExpertRow(width, 2, num_nodes, variant, 8, 0, repeat, 0, STEP_S[variant], 0.005, 0.01, *BYTES[variant], 1e-6)
        for repeat in range(5)
        for width in widths
        for variant in (list(STEP_S)[1:] if width > 1 else list(STEP_S)[:1])
    ]


def run_of(folder: Path, made: list[Any], emulated_nodes: int | None = 2) -> Run:
    config = {"experiment": "expert_parallel", "sweep": {"emulated_nodes": emulated_nodes}}
    return load_run(write_run(folder / "run", made, config))


def test_speed_up_and_saved_bytes(tmp_path: Path) -> None:
    results = expert_parallel.analyse(run_of(tmp_path, rows()))
    steps, wire = results.tables
    assert [row[2:6] for row in steps.rows] == [
        ("one rank", "40 ms", "", ""),
        ("contiguous", "30 ms", "1.33 [1.33, 1.33]", "16.7 %"),
        ("overlapped", "25 ms", "1.6 [1.6, 1.6]", "20 %"),
        ("placed", "20 ms", "2 [2, 2]", "25 %"),
    ]
    assert [row[3:] for row in wire.rows] == [
        ("contiguous", "4 KiB", "2.93 KiB", ""),
        ("placed", "4 KiB", "1.172 KiB", "60 %"),
    ]
    assert results.answer.startswith("Experts near their tokens save 60 % to 60 % of the bytes between nodes")
    assert "2 emulated nodes" in steps.title


def test_more_ranks_than_cores_show_no_scaling(tmp_path: Path) -> None:
    (steps, _) = expert_parallel.analyse(run_of(tmp_path, rows((1, 2, 4)))).tables
    assert {row[1] for row in steps.rows} == {"1", "2", "4 (oversubscribed)"}
    assert any("no scaling" in note for note in steps.notes)


def test_one_node_has_nothing_between_nodes(tmp_path: Path) -> None:
    results = expert_parallel.analyse(run_of(tmp_path, rows(num_nodes=1), None))
    assert results.answer == "One node: nothing crosses between nodes."


def test_a_run_without_several_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no step of several ranks"):
        expert_parallel.analyse(run_of(tmp_path, rows((1,))))
