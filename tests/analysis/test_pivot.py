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
    text = capsys.readouterr().out
    assert "| beta, gamma |" in text
    assert "The runs also differ in environment.mpi." in text


def test_clusters_whose_hosts_have_the_same_names_are_no_repeats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machines = [{"n1": {"cpu": cpu, "num_cores": 64}} for cpu in ("Xeon", "EPYC")]
    folders = [str(write_compare(tmp_path / str(i), 5, {}, {"machines": each})) for i, each in enumerate(machines)]
    assert compare.main(folders) == 2
    assert "environment.machines: ['64 x Xeon'] and ['64 x EPYC']" in capsys.readouterr().err
    assert pivot.main([*folders, "--by", "environment.hosts"]) == 2
    assert "but of another environment.machines; add environment.machines to --by" in capsys.readouterr().err
    assert pivot.main([*folders, "--by", "environment.machines", "--format", "markdown"]) == 0
    assert "| 64 x EPYC |" in capsys.readouterr().out


def test_a_cell_that_begins_with_a_bracket_is_no_option_of_a_line_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_compare(tmp_path / "a\n$(x) <b>&_%", 5, {"fabric": {"name": "ib", "tls": ["rc", "ud\n"]}})
    assert pivot.main([str(folder), "--by", "fabric.tls", "--format", "latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.lstrip().startswith("{[}'rc', 'ud") for line in lines) == 1
    assert compare.main([str(folder), "--format", "latex"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert line.startswith(("%", "\\", "  ")), f"a value begins a line of its own: {line}"
        assert line.startswith("%") or "$(x)" not in line


def test_a_run_that_lost_its_environment_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_compare(tmp_path / "r", 5, {})
    (folder / "environment.json").unlink()
    assert compare.main([str(folder)]) == 0
    assert "[unknown machine]" in capsys.readouterr().out


def test_a_folder_of_runs_says_how_to_give_them(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parent = str(Path(folders[0]).parent)
    assert pivot.main([parent, "--by", "fabric"]) == 2
    assert f"it holds 3 runs, so give {parent}/*" in capsys.readouterr().err


def test_a_pipe_has_room_for_whole_words(
    folders: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert compare.main([folders[0]]) == 0
    assert "colocated   disaggregated" in capsys.readouterr().out


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
