"""Expectations: made on purpose, held against, and drift told with its sign; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis import expect
from tests.analysis.test_pivot import write_compare


@pytest.fixture
def expected(tmp_path: Path) -> list[str]:
    """The options that name a file with the expectation of a bill of 20 ms."""
    options = ["--machine", "node", "--baselines", str(tmp_path / "baselines")]
    folder = write_compare(
        tmp_path / "first", 20.0, {"run": {"root": "elsewhere"}, "workload": {"num_requests": 2, "seed": 1}}
    )
    assert expect.main([str(folder), "--update", *options]) == 0
    return options


def table(folder: Path, options: list[str], out: Path) -> tuple[int, pd.DataFrame]:
    code = expect.main([str(folder), "--check", *options, "--format", "csv", "--out", str(out)])
    return code, pd.read_csv(out).set_index("quantity")


def test_the_same_again_is_no_drift(expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = write_compare(tmp_path / "again", 20.0, {})
    assert expect.main([str(again), "--check", *expected]) == 0, "another seed and folder are a repeat"
    assert "No drift." in capsys.readouterr().out


def test_a_slower_link_is_drift_for_the_worse(expected: list[str], tmp_path: Path) -> None:
    code, rows = table(write_compare(tmp_path / "slow", 30.0, {}), expected, tmp_path / "out.csv")
    assert code == 1
    assert rows["drifted"].to_dict() == {"bill_s": True, "win_s": False, "net_s": True}
    assert rows.loc["bill_s", "change"] == pytest.approx(0.010)


def test_words_have_the_sign_of_the_quantity(
    expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast = write_compare(tmp_path / "slow", 30.0, {}), write_compare(tmp_path / "fast", 10.0, {})
    assert expect.main([str(slow), "--check", *expected, "--format", "markdown"]) == 1
    assert "2 of 3 quantities drifted, 2 for the worse" in capsys.readouterr().out
    assert expect.main([str(fast), "--check", *expected, "--format", "markdown"]) == 1
    assert "2 of 3 quantities drifted, 0 for the worse" in capsys.readouterr().out


def test_what_is_below_the_tolerance_does_not_count(expected: list[str], tmp_path: Path) -> None:
    little = write_compare(tmp_path / "little", 20.7, {})
    assert table(little, [*expected, "--tolerance", "0.01"], tmp_path / "a.csv")[0] == 1
    assert table(little, expected, tmp_path / "b.csv")[0] == 0


def test_an_update_replaces_its_own_configuration_alone(expected: list[str], tmp_path: Path) -> None:
    other = write_compare(tmp_path / "other", 5.0, {"fabric": {"name": "ib"}})
    assert expect.main([str(other), "--update", *expected]) == 0
    newer = write_compare(tmp_path / "newer", 30.0, {})
    assert expect.main([str(newer), "--update", *expected]) == 0
    kept = json.loads((tmp_path / "baselines" / "node.json").read_text())["expectations"]
    assert len(kept) == 2
    assert table(newer, expected, tmp_path / "out.csv")[0] == 0
    assert table(other, expected, tmp_path / "out.csv")[0] == 0


def test_another_configuration_has_no_expectation(
    expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_compare(tmp_path / "other", 20.0, {"fabric": {"name": "ib"}})
    assert expect.main([str(other), "--check", *expected]) == 2
    assert "no expectation of this configuration (there are: compare" in capsys.readouterr().err


def test_a_damaged_file_is_named(expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "baselines" / "node.json"
    for text in ("{", "[]", '{"expectations": [{"digest": 1}]}'):
        path.write_text(text)
        assert expect.main([str(write_compare(tmp_path / f"run{len(text)}", 20.0, {})), "--check", *expected]) == 2
        assert f"{path}: no file of expectations" in capsys.readouterr().err
