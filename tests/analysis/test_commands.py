"""The command lines: every format, every experiment's page, and errors that name the remedy without a traceback."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import compare, contention, economics, interference, report, scaling, serve, transfer
from analysis.load import load_run
from analysis.statistics import num_workers
from analysis.tables import placement_name
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd.records import DecisionRow, EconomicsRow, GapRow, ReceiptRow, ReceivingGapRow, ScalingRow, TransferPointRow

COLOCATED = Way(queue=10, prefill=20, gaps=(10, 10, 10))
SPLIT = Way(queue=14, prefill=22, exposed=6, admission=2, gaps=(16, 6, 6), moved=True)


def compare_rows(num_pairs: int = 5) -> list[Any]:
    rows: list[Any] = []
    for pair in range(num_pairs):
        for number, (arm, way) in enumerate((("colocated", COLOCATED), ("disaggregated", SPLIT), ("null", COLOCATED))):
            rows += block_rows(3 * pair + number, pair, arm, [(100, way), (600, way)])
    return rows


def serve_rows() -> list[Any]:
    return [row for n in range(5) for row in block_rows(n, n, "disaggregated", [(100, SPLIT), (600, SPLIT)])]


def transfer_rows() -> list[Any]:
    """alpha 50 us, gamma 10 us, 2 GB/s, exactly."""
    sizes = [(65536, False), (1048576, False), (16777216, False), (4194304, True)]
    return [
        TransferPointRow(1, 2, "ucx", size, n, n, 4, repeat, 50e-6 + n * 10e-6 + size / 2e9, held_out)
        for size, held_out in sizes
        for n in (1, 8)
        for repeat in range(3)
    ]


def gap_rows() -> list[Any]:
    """A 10 ms decode step beside a 25 ms chunk: a 35 ms gap, 3.5 times."""
    sizes = ((0, 0.010), (256, 0.035))
    return [GapRow(chunk, 4, repeat, i, gap) for chunk, gap in sizes for repeat in range(5) for i in range(4)]


def contention_rows() -> list[Any]:
    """10 MiB in 5 ms, 15 ms beside a batch of 4 whose 10 ms gaps become two of 14 ms: a hand-off costs it 8 ms."""
    rows: list[Any] = []
    for repeat in range(5):
        rows += [ReceiptRow(1, 2, batch, 0, 10 << 20, 10, repeat, s) for batch, s in ((0, 0.005), (4, 0.015))]
        rows += [ReceivingGapRow(2, 4, 0, 0, repeat, i, 0.010) for i in range(6)]
        rows += [ReceivingGapRow(2, 4, 0, 10 << 20, repeat, i, 0.014) for i in range(2)]
    return rows


def scaling_rows() -> list[Any]:
    """A 12 ms prompt takes two ranks 8 ms, a quarter of it in exchange: 1.5 times as fast. Four ranks share two cores.

    Cut in two, its second half takes 10 ms and the first 6, then waits; in a zigzag both take 8. Eight decodes: 4 ms,
    through two stages as one micro-batch too, as four in 2.5 ms.
    """
    steps = {
        ("tp", "", 0, 1, 256, 0): [(0.012, 0.0, 0.011)],
        ("tp", "", 0, 2, 256, 0): [(0.008, 0.002, 0.0055)] * 2,
        ("tp", "", 0, 4, 256, 0): [(0.010, 0.006, 0.00275)] * 4,
        ("cp", "contiguous", 0, 2, 256, 0): [(0.010, 0.001, 0.009), (0.010, 0.005, 0.005)],
        ("cp", "zigzag", 0, 2, 256, 0): [(0.008, 0.001, 0.006)] * 2,
        ("tp", "", 0, 1, 0, 8): [(0.004, 0.0, 0.004)],
        ("pp", "1 micro-batch", 1, 2, 0, 8): [(0.004, 0.002, 0.002)] * 2,
        ("pp", "4 micro-batches", 4, 2, 0, 8): [(0.0025, 0.0005, 0.002)] * 2,
    }
    return [
        ScalingRow(
            *(kind, variant, count, width, rank, 2, prompt, batch, repeat, i),
            *(step_s, exchange_s, 4096 * (width > 1), work_s, 1e-6 * (width > 1)),
        )
        for (kind, variant, count, width, prompt, batch), ranks in steps.items()
        for rank, (step_s, exchange_s, work_s) in enumerate(ranks)
        for repeat in range(5)
        for i in range(3)
    ]


def economics_rows() -> list[Any]:
    slow, fast = "don't: the link is too slow", "split"
    return [
        EconomicsRow("llama3_8b", rate, n, 256, n * 131072, 0.1, bill, bill, bill / 0.1, 0.05, 0.05 - bill, 40, 9, 0, v)
        for n in (128, 2048)
        for rate, bill, v in ((10.0, 0.2, slow), (100.0, 0.02, fast))
    ]


KINDS: dict[str, tuple[Callable[[], list[Any]], Any]] = {
    "compare": (compare_rows, compare),
    "serve": (serve_rows, serve),
    "transfer": (transfer_rows, transfer),
    "interference": (gap_rows, interference),
    "contention": (contention_rows, contention),
    "scaling": (scaling_rows, scaling),
    "economics": (economics_rows, economics),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "compare" / "r", compare_rows())


@pytest.mark.parametrize("experiment", KINDS)
def test_every_experiment_has_a_page_that_fetches_nothing(tmp_path: Path, experiment: str) -> None:
    rows, _ = KINDS[experiment]
    folder = write_run(tmp_path / experiment / "r", rows(), config={"experiment": experiment})
    assert report.main([str(folder)]) == 0
    html = (folder / "report.html").read_text()
    assert not re.search(r"https?:|//[a-z]|<link|<script[^>]|src=|url\((?!#)", html)
    assert html.count("<script") == 1, "the page's own, which sorts its tables"
    assert not re.search(r"fetch\(|import\(|XMLHttp", html)
    assert html.count("<svg") == html.count("<figure role") >= 1
    assert html.count("shared node") > 3, "the label is with every table and plot"
    assert "experiment: " + experiment in html


@pytest.mark.parametrize("experiment", KINDS)
@pytest.mark.parametrize("fmt", ["terminal", "markdown", "csv", "latex"])
def test_every_experiment_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], experiment: str, fmt: str
) -> None:
    rows, module = KINDS[experiment]
    folder = write_run(tmp_path / experiment / "r", rows(), config={"experiment": experiment})
    assert module.main([str(folder), "--format", fmt]) == 0
    assert "shared node" in capsys.readouterr().out


def test_the_page_leads_with_the_answer(folder: Path) -> None:
    report.main([str(folder)])
    html = (folder / "report.html").read_text()
    assert '<h1 class="open">Verdict over all lengths: split, but not at this ratio: end to end it loses.</h1>' in html
    assert html.index("<h1") < html.index("Verdict per length class") < html.index("Ledger, all lengths")
    assert "0123456789ab" in html


def test_what_a_run_says_is_escaped(tmp_path: Path) -> None:
    rows = [*compare_rows(), *block_rows(90, 9, "colocated", [(100, Way(failed="<script>alert(1)</script>"))])]
    folder = write_run(tmp_path / "r", rows)
    report.main([str(folder)])
    html = (folder / "report.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_csv_is_tidy_and_exact(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(folder), "--format", "csv"]) == 0
    frame = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index(["length", "quantity"])
    assert frame.loc[("all", "bill_s"), "measured"] == pytest.approx(0.008)
    assert frame.loc[("1-128", "net_s"), "measured_high"] == pytest.approx(-0.004)
    assert set(frame["placement"]) == {"1P1D"}
    assert set(frame["labels"]) == {"CPU, shared node"}
    assert frame.index.is_unique


def test_latex_has_the_shape_of_booktabs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(folder), "--format", "latex"])
    text = capsys.readouterr().out
    tables = text.count(r"\begin{table}")
    assert tables >= 5
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\end{table}", r"\end{tabular}"):
        assert text.count(rule) == tables
    assert text.count("{") == text.count("}")
    for body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body[1].split("\n"):
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(body[0]) - 1
    outside_comments = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert not re.search(r"(?<!\\)[%#_^~]", outside_comments)


def test_markdown_rows_are_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(folder), "--format", "markdown"])
    text = capsys.readouterr().out
    assert "| bill (transfer) |" in text
    assert "**Verdict over all lengths: split, but not at this ratio: end to end it loses.**" in text
    for table in text.split("\n\n"):
        if table.startswith("|"):
            assert len({line.count("|") for line in table.strip().splitlines()}) == 1


def test_by_class_adds_a_ledger_per_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare.main([str(folder)])
    assert "Ledger, input tokens 513-2048" not in capsys.readouterr().out
    compare.main([str(folder), "--by-class"])
    assert "Ledger, input tokens 513-2048" in capsys.readouterr().out


def test_out_writes_a_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ledger.md"
    assert compare.main([str(folder), "--format", "markdown", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert "net: ledger + pools" in out.read_text()


def test_a_partial_run_needs_the_flag_and_is_labelled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "r", compare_rows(), done=False)
    assert compare.main([str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert str(folder) in error
    assert "--allow-partial" in error
    assert compare.main([str(folder), "--allow-partial"]) == 0
    assert "partial run" in capsys.readouterr().out
    assert report.main([str(folder), "--allow-partial"]) == 0


def test_runs_that_differ_get_one_table_each_and_an_overview(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_run(tmp_path / "compare" / "s", compare_rows(), config={"transport": {"name": "mpi"}})
    assert compare.main([str(folder), str(other)]) == 2
    assert "transport.name: 'ucx' and 'mpi'" in capsys.readouterr().err
    assert compare.main([str(folder), str(other), "--allow-mixed", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\| compare/s \| mpi \| split \|", text)


def test_an_overview_names_request_classes_and_has_the_hybrid_arms(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = [{"name": name, "share": 0.5, "input_len": {"kind": "fixed", "tokens": 7}} for name in ("talk", "docs")]
    rows = [*compare_rows(), *block_rows(90, 0, "hybrid", [(100, Way())])]
    rows.append(DecisionRow(90, 0, 0, False, 1, 1, *[0.01] * 6, 0.06, 0.06, "staying costs less"))
    other = write_run(tmp_path / "compare" / "s", rows, config={"workload": {"classes": classes}})
    assert compare.main([str(folder), str(other), "--allow-mixed", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "| talk, docs |" in text
    assert "Hybrid routing over all runs, measured" in text


@pytest.mark.parametrize("program", [compare, report])
def test_bad_input_is_one_line_and_exit_code_2(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([str(tmp_path / "nothing")]) == 2
    assert program.main([str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("error: ") for line in lines)


def test_the_wrong_program_names_the_right_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "r", serve_rows(), config={"experiment": "serve"})
    assert compare.main([str(folder)]) == 2
    assert "python -m analysis.serve" in capsys.readouterr().err


def test_the_link_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "r", transfer_rows(), config={"experiment": "transfer"})
    transfer.main([str(folder), "--format", "markdown"])
    text = capsys.readouterr().out
    assert "| 4 | 50 us | 10 us | 2 GB/s | 16 Gb/s | 1.000 |" in text
    assert "**2 GB/s with 4 pieces in flight.**" in text


def test_the_interference_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "r", gap_rows(), config={"experiment": "interference"})
    interference.main([str(folder), "--format", "markdown"])
    assert "| 4 | 256 | 35 ms | 35 ms | 35 ms | 25 [25, 25] ms | 3.5 |" in capsys.readouterr().out


def test_what_receiving_costs_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "r", contention_rows(), config={"experiment": "contention"})
    contention.main([str(folder), "--format", "markdown"])
    text = capsys.readouterr().out
    assert "| 10 MiB | idle | idle | 5 ms | isolated |" in text
    assert "| 10 MiB | 4 decodes | idle | 15 ms | 3 |" in text
    assert "| 10 MiB | 4 | idle | 10 ms | 14 ms | 14 ms | 1.4 | 8 [8, 8] ms |" in text


def test_a_speed_up_is_told_beside_one_rank_and_says_where_cores_are_too_few(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "scaling" / "r", scaling_rows(), config={"experiment": "scaling"}))
    results = scaling.analyse(run)
    assert results.answer == "At best 1.6 times as fast, on 2 pipeline stages."
    tensor, pipeline, context = results.tables
    assert tensor.rows == [
        ("prefill of 256", "1", "12 ms", "", "", "", "", ""),
        ("prefill of 256", "2", "8 ms", "1.5 [1.5, 1.5]", "50 %", "25 %", "4 KiB", "1e-06"),
        ("prefill of 256", "4 (oversubscribed)", "10 ms", "1.2 [1.2, 1.2]", "25 %", "60 %", "4 KiB", "1e-06"),
    ]
    one, four = "1 [1, 1]", "1.6 [1.6, 1.6]"
    assert pipeline.rows[1:] == [
        ("decode of 8", "2", "1 micro-batch", "4 ms", one, "", "50 %", "50 %", "50 %", "4 KiB", "1e-06"),
        ("decode of 8", "2", "4 micro-batches", "2.5 ms", four, four, "50 %", "20 %", "20 %", "4 KiB", "1e-06"),
    ]
    fast, faster, gain = "1.2 [1.2, 1.2]", "1.5 [1.5, 1.5]", "1.25 [1.25, 1.25]"
    assert context.rows[1:] == [
        ("prefill of 256", "2", "contiguous", "10 ms", fast, "", "63.6 %", "1.29", "30 %", "4 KiB", "1e-06"),
        (
            "prefill of 256",
            "2",
            "zigzag",
            "8 ms",
            faster,
            gain,
            "54.5 %",
            "1",
            "12.5 %",
            "4 KiB",
            "1e-06",
        ),
    ]


def test_the_ranks_of_instances_count_as_ranks(tmp_path: Path) -> None:
    placement = {"num_prefill": 2, "num_decode": 1, "num_colocated": 0, "prefill_tp": 2, "decode_tp": 4}
    run = load_run(write_run(tmp_path / "r", compare_rows(), config={"placement": {**placement, "colocated_tp": None}}))
    assert num_workers(run) == 8
    assert placement_name(placement) == "2P(tp2)1D(tp4)"
    assert placement_name({"num_colocated": 3}) == "3C"
    divided = {**placement, "prefill_tp": 1, "prefill_cp": 4, "decode_tp": 1, "decode_pp": 2}
    run = load_run(write_run(tmp_path / "d", compare_rows(), config={"placement": {**divided, "colocated_tp": None}}))
    assert num_workers(run) == 10
    assert placement_name(divided) == "2P(cp4)1D(pp2)"
