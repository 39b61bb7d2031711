"""Runs that earlier versions wrote still load, and say the same; those of a later version are refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis.ledger import Comparison
from analysis.load import RunError, load_run
from tests.analysis.synthetic import Way, block_rows, write_run
from xpyd.records import SCHEMA_VERSION, TABLES, ScalingRow
from xpyd.schema_history import ADDED, RENAMED, Like
from xpyd.streams import arrow_schema

# What version 1 wrote, copied from its records.py.
TRANSFERS_1 = [
    *("block", "request_id", "src_rank", "dst_rank", "mode", "num_pieces", "payload_bytes", "begin_ns", "end_ns"),
    *("num_inflight", "verified"),
]
STEPS_1 = [
    *("block", "rank", "role", "begin_ns", "end_ns", "num_prefill_tokens", "num_prefill_seqs", "num_decode_seqs"),
    *("num_context_tokens", "num_free_kv_blocks", "num_waiting", "num_preempted"),
]
SCALING_2 = {
    "width": 2,
    "num_cores": 2,
    "num_prefill_tokens": 0,
    "num_decode_seqs": 4,
    "repeat": 0,
    "index": 0,
    "step_s": 0.5,
    "reduce_s": 0.125,
    "reduce_bytes": 4096,
    "work_s": 0.25,
    "logit_error": 0.0,
}


def comparison_rows() -> list[Any]:
    """Five pairs: a moved request saves 4 ms in each of three gaps, the 6 ms that its KV takes included."""
    arms = {"colocated": Way(gaps=(14, 14, 14)), "disaggregated": Way(exposed=6, moved=True)}
    return [
        row
        for pair in range(5)
        for number, (arm, way) in enumerate(arms.items())
        for row in block_rows(2 * pair + number, pair, arm, [(100, way), (100, way)])
    ]


def as_version(path: Path, version: int, columns: list[str] | None = None) -> None:
    """Rewrite a table with fewer columns and another version."""
    table = pq.read_table(path)
    table = table.select(columns or table.schema.names)
    pq.write_table(table.replace_schema_metadata({"schema_version": str(version)}), path)


def test_a_run_of_the_first_version_says_the_same(tmp_path: Path) -> None:
    now = write_run(tmp_path / "now", comparison_rows())
    old = write_run(tmp_path / "old", comparison_rows())
    for path in old.glob("*.parquet"):
        as_version(path, 1, {"transfers": TRANSFERS_1, "steps": STEPS_1}.get(path.stem))
    first, today = Comparison(load_run(old)), Comparison(load_run(now))
    assert first.line("all", "ledger_s").measured.mid == pytest.approx(0.012)
    assert repr(first.lines) == repr(today.lines)
    transfers = first.run.tables["transfers"]
    assert set(transfers["direction"]) == {"pull"}
    assert not transfers["staged"].any()
    assert (transfers["reserved_ns"] == transfers["begin_ns"]).all()
    assert (first.run.tables["steps"]["num_reserved_kv_blocks"] == 0).all()


def test_renamed_columns_keep_their_values(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", comparison_rows())
    old = pa.table({name: [value] for name, value in SCALING_2.items()}).replace_schema_metadata(
        {"schema_version": "2"}
    )
    pq.write_table(old, run / "scaling.parquet")
    (row,) = load_run(run).tables["scaling"].to_dict("records")
    assert (row["exchange_s"], row["exchange_bytes"], row["kind"], row["work_s"]) == (0.125, 4096, "tp", 0.25)
    assert set(row) == set(ScalingRow.__dataclass_fields__)


def test_a_stream_of_an_earlier_version_is_read_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", comparison_rows(), done=False)
    path = next((run / "streams").glob("steps.*"))
    with pa.ipc.open_stream(path.read_bytes()) as reader:
        steps = reader.read_all().select(STEPS_1).replace_schema_metadata({"schema_version": "1"})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, steps.schema) as writer:
        writer.write_table(steps)
    found = load_run(run, allow_partial=True).tables["steps"]
    assert len(found) == steps.num_rows
    assert (found["num_reserved_kv_blocks"] == 0).all()


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0])
def test_a_version_that_nobody_knows_is_refused(tmp_path: Path, version: int) -> None:
    run = write_run(tmp_path / "run", comparison_rows())
    as_version(run / "steps.parquet", version)
    with pytest.raises(RunError, match=rf"steps\.parquet: written with schema version {version}, this is"):
        load_run(run)


def test_columns_that_no_version_had_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", comparison_rows())
    as_version(run / "steps.parquet", 1, STEPS_1[:-1])
    with pytest.raises(RunError, match=r"steps\.parquet: written with schema version 1"):
        load_run(run)


def test_the_history_names_only_what_there_is() -> None:
    for table, columns in ADDED.items():
        today = arrow_schema(table)
        assert set(columns) <= set(today.names)
        for name, value in columns.items():
            if isinstance(value, Like):
                assert today.field(name).type == today.field(value.column).type
            else:
                assert pa.scalar(value, today.field(name).type).as_py() is not None
    for table, names in RENAMED.items():
        assert set(names.values()) <= set(arrow_schema(table).names)
    assert set(ADDED) | set(RENAMED) <= set(TABLES)
