"""The codec tables on rows worked out by hand: bytes, seconds, bill, break-even, drift; and the link they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis import codecs, divergence, report
from analysis.load import RunError, load_run
from tests.analysis.synthetic import write_run
from xpyd.records import CodecPointRow, DivergenceRow, TransferPointRow

MB = 1_000_000
SWEEP = {"rate_gbps": 8.0, "alpha_s": 0.001, "gamma_s": 0.0, "max_piece_bytes": 10 * MB}
CONFIG: dict[str, Any] = {"experiment": "codecs", "model": {"name": "tiny", "dtype": "bfloat16"}, "sweep": SWEEP}
LABELS = {"labels": ["CPU", "random weights", "random prompts"]}


def point_rows(wall: float = 10.0) -> list[Any]:
    """100 MB of KV in 2 layers. int8: half the bytes, 30 + 20 ms. zstd: 80 MB, 0.3 + 0.2 s. One slow repeat each."""
    costs = {"none": (100, 0.004, 0.006), "int8": (50, 0.03, 0.02), "zstd": (80, 0.3, 0.2)}
    return [
        CodecPointRow(
            codec, prompt, 1024, repeat, 2, 100 * MB, size * MB, encode * slow, decode * slow, (encode + decode) * wall
        )
        for codec, (size, encode, decode) in costs.items()
        for prompt in range(2)
        for repeat, slow in enumerate((1.0, 1.0, 9.0))
    ]


def drift_rows() -> list[Any]:
    """Prompt 0 of int8 differs at its second and fourth of four decoded tokens, prompt 1 never."""
    rows = []
    for codec, wrong, error in (("none", (), 0.0), ("int8", (2, 4), 0.5), ("zstd", (), 0.0)):
        for prompt in range(2):
            for index in range(1, 5):
                token = 7 + (prompt == 0 and index in wrong)
                kl = error * index / 1000
                rows.append(DivergenceRow(codec, prompt, 1024, index, 7, token, 7, kl, error * index, error, 2.0, 1.5))
    return rows


def write(folder: Path, rows: list[Any], **sweep: float) -> Path:
    return write_run(folder, rows, {**CONFIG, "sweep": {**SWEEP, **sweep}}, LABELS)


def table_of(folder: Path, link: Path | None = None) -> dict[str, dict[str, str]]:
    table = codecs.analyse(load_run(folder), link).tables[0]
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_bytes_seconds_bill_and_breakeven(tmp_path: Path) -> None:
    """At 8 Gb/s 100 MB take 100 ms; int8 takes 50 ms of codec and 50 ms of wire: exactly nothing gained."""
    found = table_of(write(tmp_path / "run", point_rows() + drift_rows()))
    assert list(found) == ["none", "int8", "zstd"]
    none, int8, zstd = found.values()
    assert (none["bytes %"], int8["bytes %"], zstd["bytes %"]) == ("100", "50", "80")
    assert (int8["encode s/GB"], int8["decode s/GB"]) == ("0.3", "0.2"), "medians over repeats: no slow one"
    assert (none["encode s/GB"], none["decode s/GB"]) == ("0.04", "0.06")
    assert (none["bill ms"], int8["bill ms"], zstd["bill ms"]) == ("101", "101", "581"), "none: pool to pool, no copy"
    assert (none["saved ms"], int8["saved ms"], zstd["saved ms"]) == ("", "+0", "-480")
    assert (none["pays below Gb/s"], int8["pays below Gb/s"], zstd["pays below Gb/s"]) == ("", "8", "0.32")


@pytest.mark.parametrize(("rate_gbps", "answer"), [(2.0, "int8 saves 150 ms of 401 ms"), (80.0, "No codec pays")])
def test_the_headline_follows_the_link(tmp_path: Path, rate_gbps: float, answer: str) -> None:
    results = codecs.analyse(load_run(write(tmp_path / "run", point_rows() + drift_rows(), rate_gbps=rate_gbps)))
    assert results.answer.startswith(answer)
    assert "below 8 Gb/s" in results.because
    assert "75 % of its tokens" in results.because


def test_pieces_count_where_they_cost(tmp_path: Path) -> None:
    """1 ms a piece: none sends 2 x 5 pieces, int8 2 x 3, so 4 ms of its 50 are won back."""
    folder = write(tmp_path / "run", point_rows() + drift_rows(), gamma_s=0.001)
    found = table_of(folder)
    assert found["int8"]["saved ms"] == "+4"
    assert float(found["int8"]["pays below Gb/s"]) == pytest.approx(8 * 50 / 46, rel=0.005)


def test_drift_by_hand(tmp_path: Path) -> None:
    run = load_run(write(tmp_path / "run", point_rows() + drift_rows()))
    drift = divergence.measure_drift(run.tables["divergence"])["int8"]
    assert (drift.num_prompts, drift.num_steps, drift.num_diverged) == (2, 4, 1)
    assert drift.agreement == 6 / 8
    assert drift.common_prefix == (1 + 4) / 2
    assert drift.kl_nats == pytest.approx(0.5 * 2.5 / 1000)
    assert drift.kl_at_divergence == pytest.approx(0.5 * 2 / 1000)
    assert (drift.max_logit_error, drift.mean_logit_error) == (2.0, 0.5)
    none = table_of(run.paths[0])["none"]
    assert [none[column] for column in divergence.CELLS] == ["100", "4", "0", "-", "0", "0"]


def test_the_tables_say_whose_logits_these_are(tmp_path: Path) -> None:
    table = codecs.analyse(load_run(write(tmp_path / "run", point_rows() + drift_rows()))).tables[0]
    text = " ".join(table.notes)
    assert "random weights" in table.title
    for words in ("neither the KV values nor the margins", "model.checkpoint=FOLDER", "modeled", "not those of a GPU"):
        assert words in text
    trained = write_run(tmp_path / "trained", point_rows() + drift_rows(), CONFIG, {"labels": ["CPU"]})
    assert "Random" not in " ".join(codecs.analyse(load_run(trained)).tables[0].notes)


def test_a_busy_machine_is_named(tmp_path: Path) -> None:
    busy, quiet = (codecs.analyse(load_run(write(tmp_path / str(wall), point_rows(wall)))) for wall in (3.0, 1.0))
    assert "the codecs took 3 times their CPU time" in " ".join(busy.tables[0].notes)
    assert "busy" not in " ".join(quiet.tables[0].notes)


def test_a_fitted_link_replaces_the_configured_one(tmp_path: Path) -> None:
    """2 GB/s, 50 us a transfer, 10 us a piece: int8 loses there."""
    points = [
        TransferPointRow(1, 2, "ucx", size, n, n, 4, repeat, 50e-6 + n * 10e-6 + size / 2e9, False)
        for size in (65536, 1048576, 16777216)
        for n in (1, 8)
        for repeat in range(2)
    ]
    link = write_run(tmp_path / "transfer" / "wire", points, {"experiment": "transfer"})
    run = write(tmp_path / "run", point_rows() + drift_rows())
    results = codecs.analyse(load_run(run), link)
    assert results.answer == "No codec pays at 16 Gb/s."
    assert "fitted to transfer/wire" in " ".join(results.tables[0].notes)
    with pytest.raises(RunError, match="a run of experiment 'codecs'; this program reads transfer"):
        codecs.analyse(load_run(run), run)


def test_a_run_that_ended_early(tmp_path: Path) -> None:
    """Timed, not yet decoded from: the bill stands and the drift is a dash. Nothing timed: refused."""
    found = table_of(write(tmp_path / "timed", point_rows()))
    assert found["int8"]["bill ms"] == "101"
    assert {found["int8"][column] for column in divergence.CELLS} == {"-"}
    with pytest.raises(RunError, match="no codec was timed"):
        codecs.analyse(load_run(write(tmp_path / "nothing", drift_rows())))


def test_the_plot_marks_every_breakeven(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    results = codecs.analyse(load_run(write(tmp_path / "run", point_rows() + drift_rows())))
    figure = Figure()
    results.plots[0].draw(figure)
    dots = {
        (round(x, 3), round(y, 3))
        for line in figure.axes[0].lines
        if line.get_marker() == "o"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert dots == {(8.0, 0.101), (0.32, 2.501)}


def test_csv_holds_one_row_per_codec(tmp_path: Path) -> None:
    frame: pd.DataFrame = codecs.analyse(load_run(write(tmp_path / "run", point_rows() + drift_rows()))).frame
    assert frame["codec"].tolist() == ["none", "int8", "zstd"]
    assert frame.set_index("codec").loc["int8", "breakeven_gbps"] == pytest.approx(8.0)


@pytest.mark.parametrize("fmt", ["terminal", "markdown", "csv", "latex"])
def test_every_format_carries_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str], fmt: str) -> None:
    folder = write(tmp_path / "run", point_rows() + drift_rows())
    assert codecs.main([str(folder), "--format", fmt]) == 0
    assert "random weights" in capsys.readouterr().out


def test_the_page_shows_the_plot_and_the_details(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", point_rows() + drift_rows())
    assert report.main([str(folder)]) == 0
    html = (folder / "report.html").read_text()
    assert "No codec pays at 8 Gb/s." in html
    assert html.count("<svg") == html.count("<figure role") == 1
    assert "Drift by prompt length" in html
