"""From folders to judgements: a claims run, runs given one by one, what failed, and the files that are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from analysis import report
from analysis.claims import __main__ as program
from tests.analysis.synthetic import write_run
from tests.analysis.test_claims_families import SMOOTH, SPIKY, gap_rows, pair_rows

ONLY = ["tail_latency", "ttft", "prefill_burst", "goodput"]


def claims_run(folder: Path, only: list[str] | None = None) -> Path:
    """A claims run with gaps and a comparison, and a saturation that failed."""
    write_run(folder / "runs/interference/interference", gap_rows(0.06), {"experiment": "interference"})
    write_run(folder / "runs/compare/compare", pair_rows(SPIKY, SMOOTH))
    names = {"interference": "", "compare": "", "saturation": "ranks 1 and 2 share a node <x> (exit code 2)"}
    entries = [
        {"name": name, "experiment": name, "folder": f"runs/{name}/{name}", "seconds": 1.0, "error": error}
        for name, error in names.items()
    ]
    (folder / "config.yaml").write_text(yaml.safe_dump({"experiment": "claims", "claims": {"only": only or ONLY}}))
    (folder / "measurements.json").write_text(json.dumps({"measurements": entries}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = claims_run(tmp_path_factory.mktemp("claims") / "r")
    assert program.main([str(made)]) == 0
    return made


def test_the_page_has_a_card_and_a_plot_for_each_claim(folder: Path) -> None:
    html = (folder / "claims.html").read_text()
    assert html.count("<article") == html.count("<svg") == html.count("<figure role") == len(ONLY)
    assert not re.search(r"https?:|//[a-z]|<link|<script|src=|url\((?!#)|fetch\(|import\(", html)
    cards = re.findall(r'<article class="(\w+)" id="(\w+)">', html)
    tones = {"tail_latency": "split", "ttft": "split", "prefill_burst": "split", "goodput": "none"}
    assert {name: tone for tone, name in cards} == tones
    assert "share a node &lt;x&gt; (exit code 2)" in html, "a log is no markup"
    assert html.count("shared node") >= 3, "labels are with every plot that has a measurement"
    assert "p99 over p50, disaggregated" in html


def test_the_report_of_a_claims_run_is_its_own_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"open {folder / 'claims.html'}" in said
    assert f"python -m analysis.claims {folder}" in said


def test_the_numbers_are_in_json_and_parquet(folder: Path) -> None:
    claims = json.loads((folder / "claims.json").read_text())["claims"]
    assert {each["claim"]: each["judgement"] for each in claims} == {
        "tail_latency": "holds here",
        "ttft": "holds here",
        "prefill_burst": "holds here",
        "goodput": "not measurable here",
    }
    (part,) = next(each for each in claims if each["claim"] == "prefill_burst")["parts"]
    assert (part["measured"], part["samples"]) == (pytest.approx(6), pytest.approx([6] * 5))
    assert part["accepted_high"] is None, "infinite is no JSON"
    rows = pd.read_parquet(folder / "claims.parquet").set_index("part")
    assert rows.loc["TTFT saved", "measured"] == pytest.approx(0.6)
    assert pd.isna(rows.loc["rate sustained, split over colocated", "measured"])


def test_the_table_says_why(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([str(folder), "--only", "ttft", "goodput"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Of 2 claims 1 holds here, 1 not measurable here." in shown
    assert "goodput: measurement saturation: ranks 1 and 2 share a node <x> (exit code 2)" in shown
    assert "Claims of the field, measured [CPU, shared node]" in shown


def test_runs_given_one_by_one_are_judged_without_measuring(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(folder / "runs/interference/interference"), str(folder / "runs/compare/compare")]
    assert program.main([*runs, "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/claims.json").read_text())["claims"]
    assert {each["claim"] for each in found} == {"tail_latency", "ttft", "prefill_burst"}
    assert (tmp_path / "out/claims.html").exists()


def test_where_nothing_could_be_measured_the_exit_code_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = claims_run(tmp_path / "r", only=["goodput", "cost"])
    assert program.main([str(made)]) == 1
    assert "nothing could be measured" in capsys.readouterr().err
    assert (made / "claims.html").exists(), "the reasons are worth a page"


def test_a_run_that_no_claim_reads_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_run(tmp_path / "r", gap_rows(0.06), {"experiment": "contention"})
    assert program.main([str(other)]) == 2
    assert "no claim reads this run of contention" in capsys.readouterr().err
    assert program.main([str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
    assert program.main([]) == 2


def test_a_measurement_is_known_by_its_settings(tmp_path: Path) -> None:
    """A closed loop is the throughput claim's comparison, an open one that of the latencies."""
    closed: dict[str, Any] = {"workload": {"num_requests": 2, "arrival": {"concurrency": 16}}}
    run = write_run(tmp_path / "r", pair_rows(SPIKY, SMOOTH), closed)
    assert program.main([str(run), "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/claims.json").read_text())["claims"]
    assert [each["claim"] for each in found] == ["no_more_throughput"]


def test_what_was_stopped_midway_is_read_when_asked_for(tmp_path: Path) -> None:
    made = claims_run(tmp_path / "r", only=["prefill_burst"])
    (made / "runs/interference/interference/DONE").unlink()
    assert program.main([str(made)]) == 1
    assert program.main([str(made), "--allow-partial"]) == 0
    (claim,) = json.loads((made / "claims.json").read_text())["claims"]
    assert (claim["judgement"], claim["labels"][-1]) == ("holds here", "partial run")
