"""The demo's edges: what it refuses and says before anything starts, and what it makes of two verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from analysis.ledger import ClassVerdict
from launch.slurm_demo.__main__ import main
from launch.slurm_demo.jobs import Progress
from launch.slurm_demo.show import following
from launch.slurm_demo.table import opposite
from launch.virtual_cluster import namespaces
from xpyd.economics.verdict import Answer, Verdict


def found(answer: Answer) -> ClassVerdict:
    lines: Mapping[str, object] = {}
    return ClassVerdict("all", 60, lines, Verdict(answer, "because"), "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slow", "fast", "are_opposite"),
    [
        (Answer.LINK_TOO_SLOW, Answer.SPLIT, True),
        (Answer.NO_INTERFERENCE, Answer.SPLIT, True),
        (Answer.UNDECIDED, Answer.SPLIT, False),
        (Answer.LINK_TOO_SLOW, Answer.UNDECIDED, False),
        (Answer.SPLIT, Answer.LINK_TOO_SLOW, False),
    ],
)
def test_opposite_means_split_on_the_fast_link_only(slow: Answer, fast: Answer, are_opposite: bool) -> None:
    assert ("so does the answer" in opposite({"1gbit": found(slow), "10gbit": found(fast)})) == are_opposite


def test_a_machine_without_slurm_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(namespaces, "refusal", lambda: "missing packages: apt-get install slurm-wlm")
    assert main(["--dir", str(tmp_path / "vc")]) == 2
    assert capsys.readouterr().err == "error: missing packages: apt-get install slurm-wlm\n"
    assert not (tmp_path / "vc").exists()


def test_a_wrong_rate_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--slow", "1gb"]) == 2
    assert "rate '1gb': write a number with kbit, mbit or gbit" in capsys.readouterr().err


def test_progress_is_a_line_per_change_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with following() as show:
        for blocks in (0, 0, 1, 1, 2):
            show(Progress("1gbit", "7", "RUNNING", blocks, 12 if blocks else 0))
    assert capsys.readouterr().err.splitlines() == [
        "job 7, link 1gbit: running: starts ranks, calibrates, warms up",
        "job 7, link 1gbit: running: block 1/12",
        "job 7, link 1gbit: running: block 2/12",
    ]
