"""Many runs in one table: rows by key, pooled repeats, a baseline with marks, and mixtures that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis import compare, pivot
from analysis.intervals import bootstrap_difference
from tests.analysis.synthetic import Way, block_rows, write_run

STAY = Way(queue=10, prefill=20, gaps=(10, 10, 10))


def write_compare(folder: Path, bill: float, config: dict[str, Any], environment: dict[str, Any] | None = None) -> Path:
    """Five pairs whose hand-off takes ``bill`` milliseconds (and a little more in each pair), decode unchanged."""
    rows: list[Any] = []
    for pair in range(5):
        split = Way(queue=10, prefill=20, exposed=bill + pair / 10, gaps=(10, 10, 10), to_first=bill, moved=True)
        for number, (arm, way) in enumerate((("colocated", STAY), ("disaggregated", split))):
            rows += block_rows(2 * pair + number, pair, arm, [(100, way), (600, way)])
    return write_run(folder, rows, config=config, environment=environment)


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    fabrics = [("tcp", 20.0, "a"), ("tcp", 20.0, "b"), ("ib", 2.0, "c")]
    return [str(write_compare(tmp_path / name, bill, {"fabric": {"name": f}})) for f, bill, name in fabrics]


def test_runs_of_one_setting_are_pooled_and_others_get_a_row(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert pivot.main([*folders, "--by", "fabric", "--format", "markdown", "--show", "bill_s"]) == 0
    text = capsys.readouterr().out
    assert "| fabric | bill_s | blocks | labels |" in text
    rows = [line for line in text.splitlines() if line.startswith(("| tcp", "| ib"))]
    assert [row.split("|")[3].strip() for row in rows] == ["10", "5"], "two runs over tcp are one row of ten pairs"
    assert rows[0].split("|")[2].strip().startswith("20.2 [")
    assert rows[1].split("|")[2].strip().startswith("2.2 [")
    assert "2 settings from 3 runs" in text


def test_a_baseline_adds_changes_and_marks_what_excludes_zero(folders: list[str], tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    options = ["--by", "fabric", "--baseline", "fabric=tcp", "--show", "bill_s,win_s"]
    assert pivot.main([*folders, *options, "--format", "csv", "--out", str(out)]) == 0
    row = pd.read_csv(out).set_index("fabric").loc["ib"]
    assert row["bill_s change"] == pytest.approx(-0.018)
    assert row["bill_s change high"] < 0
    parquet = tmp_path / "table.parquet"
    assert pivot.main([*folders, *options, "--format", "parquet", "--out", str(parquet)]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(parquet), pd.read_csv(out))


def test_the_mark_is_on_what_changed_alone(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--by", "fabric", "--baseline", "fabric=tcp", "--show", "bill_s,prefill_s", "--format", "markdown"]
    assert pivot.main([*folders, *options]) == 0
    cells = next(row for row in capsys.readouterr().out.splitlines() if row.startswith("| ib")).split("|")
    assert cells[3].strip().endswith("ms *")
    assert not cells[5].strip().endswith("*")


def test_latex_has_the_units_in_its_cells(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert pivot.main([*folders, "--by", "fabric", "--format", "latex"]) == 0
    text = capsys.readouterr().out
    assert r"\toprule" in text
    assert " ms &" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "transport"], "differs from"),
        (["--by", "fabrik"], "did you mean fabric"),
        (["--by", "fabric", "--show", "bil_s"], "did you mean bill_s"),
        (["--by", "fabric", "--baseline", "fabric=roce"], "fits 0 rows, must fit one of: fabric=tcp; fabric=ib"),
        (["--by", "fabric", "--baseline", "model=tiny"], "give key=value"),
        (["--by", "fabric", "--format", "parquet"], "--out"),
    ],
)
def test_what_cannot_be_tabled_is_refused(
    folders: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert pivot.main([*folders, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_clusters_are_compared_by_their_hosts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [{"hosts": ["alpha"]}, {"hosts": ["beta", "gamma"], "mpi": "MPICH"}]
    folders = [str(write_compare(tmp_path / str(i), 5, {}, place)) for i, place in enumerate(places)]
    assert pivot.main([*folders, "--by", "model"]) == 2
    assert "environment.mpi" in capsys.readouterr().err
    assert pivot.main([*folders, "--by", "environment.hosts", "--format", "markdown"]) == 0
    assert "| beta, gamma |" in capsys.readouterr().out


def test_parquet_is_for_every_program(folders: list[str], tmp_path: Path) -> None:
    out = tmp_path / "lines.parquet"
    assert compare.main([folders[2], "--format", "parquet", "--out", str(out)]) == 0
    assert "net_s" in set(pd.read_parquet(out)["quantity"])


def test_the_difference_of_two_samples_is_covered_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    trials = 300
    covered = 0
    for _ in range(trials):
        found = bootstrap_difference(generator.normal(1, 2, 6), generator.normal(0, 1, 6))
        covered += found.low <= 1 <= found.high
    assert 0.90 <= covered / trials <= 0.995
