"""Reading run folders: whole, torn, partial, pooled, and everything that has to be refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.load import RunError, load_run, load_runs
from tests.analysis.synthetic import Way, arrow_table, block_rows, write_run
from xpyd.records import BlockRow

ROWS = [
    *block_rows(0, 0, "colocated", [(100, Way()), (600, Way())]),
    *block_rows(1, 0, "disaggregated", [(100, Way(moved=True)), (600, Way(moved=True))]),
]


def test_a_whole_run(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "compare" / "r", ROWS))
    assert not run.partial
    assert run.labels == ["CPU", "shared node"]
    assert len(run.tables["requests"]) == 4
    assert run.tables["gaps"].empty
    assert list(run.tables["gaps"].columns) == ["chunk_tokens", "num_decode_seqs", "repeat", "index", "gap_s"]


def test_a_partial_run_is_refused_unless_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", ROWS, done=False)
    with pytest.raises(RunError, match=r"partial run .*--allow-partial"):
        load_run(folder)
    run = load_run(folder, allow_partial=True)
    assert run.partial
    assert "partial run" in run.labels
    assert len(run.tables["tokens"]) == 16


@pytest.mark.parametrize(("keep", "num_rows"), [(0.0, 0), (0.1, 0), (0.99, 10), (1.0, 16)])
def test_a_torn_stream_is_read_up_to_its_last_whole_batch(tmp_path: Path, keep: float, num_rows: int) -> None:
    folder = write_run(tmp_path / "r", ROWS, done=False)
    stream = folder / "streams" / "tokens.attempt0.rank0.arrow"
    content = stream.read_bytes()
    stream.write_bytes(content[: int((len(content) - 8) * keep)])  # 8: a killed rank wrote no end-of-stream mark
    tokens = load_run(folder, allow_partial=True).tables["tokens"]
    whole = load_run(write_run(tmp_path / "whole", ROWS)).tables["tokens"]
    assert len(tokens) == num_rows
    assert tokens.equals(whole[:num_rows])


def test_a_run_killed_while_it_merged_uses_its_streams(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", ROWS, done=False)
    (folder / "tokens.parquet").write_bytes(b"PAR1 cut off")
    assert len(load_run(folder, allow_partial=True).tables["tokens"]) == 16


def test_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        load_run(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"not a run folder .*config\.yaml"):
        load_run(tmp_path)
    folder = write_run(tmp_path / "r", ROWS)
    (folder / "tokens.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(RunError, match=r"tokens\.parquet: damaged Parquet"):
        load_run(folder)
    (folder / "environment.json").write_text("{")
    (folder / "tokens.parquet").unlink()
    with pytest.raises(RunError, match=r"environment\.json: damaged JSON"):
        load_run(folder)
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(RunError, match="damaged config"):
        load_run(folder)
    (folder / "config.yaml").write_text("a: 1")
    with pytest.raises(RunError, match="names no experiment"):
        load_run(folder)


def test_another_schema_version_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", ROWS)
    blocks = [row for row in ROWS if isinstance(row, BlockRow)]
    pq.write_table(arrow_table(BlockRow, blocks, version=99), folder / "blocks.parquet")
    with pytest.raises(RunError, match=r"blocks\.parquet: written with schema version 99"):
        load_run(folder)


def test_repeats_are_pooled(tmp_path: Path) -> None:
    classes = {"1-128": {"colocated": {"queue_s": 1.0}, "disaggregated": {"queue_s": 4.0}}}
    other = {"1-128": {"colocated": {"queue_s": 2.0}, "disaggregated": {"queue_s": 7.0}}}
    first = write_run(tmp_path / "a", ROWS, predicted=classes)
    second = write_run(tmp_path / "b", ROWS, config={"run": {"root": "elsewhere"}}, predicted=other)
    third = write_run(tmp_path / "c", ROWS, predicted=classes)
    (run,) = load_runs([first, second, third])
    assert sorted(run.tables["blocks"]["block"]) == [0, 1, 2, 3, 4, 5]
    assert sorted(set(run.tables["requests"]["pair"])) == [0, 1, 2]
    assert len(run.tables["tokens"].drop_duplicates(["block", "request_id", "index"])) == 48
    assert run.predicted["1-128"]["colocated"]["queue_s"] == pytest.approx(4 / 3)
    assert run.predicted["1-128"]["disaggregated"]["queue_s"] == pytest.approx(5)


@pytest.mark.parametrize(
    ("config", "environment", "named"),
    [
        ({"transport": {"name": "mpi"}}, {}, r"transport\.name: 'ucx' and 'mpi'"),
        ({}, {"commit": "f" * 40}, r"environment\.commit"),
        ({}, {"routes": {"1->2": "tcp/eth0"}}, r"environment\.routes"),
    ],
)
def test_mixed_runs_are_refused_unless_told(tmp_path: Path, config: dict, environment: dict, named: str) -> None:
    first = write_run(tmp_path / "a", ROWS)
    second = write_run(tmp_path / "b", ROWS, config=config, environment=environment)
    with pytest.raises(RunError, match=named + r".*--allow-mixed"):
        load_runs([first, second])
    assert len(load_runs([first, second], allow_mixed=True)) == 2


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", ROWS)
    with pytest.raises(RunError, match="given twice"):
        load_runs([folder, folder / ".." / "a"])
