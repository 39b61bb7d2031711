"""Streams: the files that ranks append rows to as they happen, and how those of several attempts make one table.

A run that was killed or preempted may be resumed. Each attempt writes files of its own,
``<table>.attempt<a>.rank<k>.arrow`` (Arrow IPC streams: readable up to the last whole batch, even after ``kill -9``;
Parquet is unreadable without its footer). Of each comparison block the rows of one attempt count: the one that ended
it, else the last to begin it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from xpyd.records import SCHEMA_VERSION, TABLES
from xpyd.schema_history import Rows, upgraded

FOLDER = "streams"
ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}
_NAME = re.compile(r"(?P<table>\w+)\.attempt(?P<attempt>\d+)\.rank(?P<rank>\d+)\.arrow")


class StreamError(ValueError):
    """A stream that cannot be read; the message names it, and the remedy."""


class SchemaVersionError(StreamError):
    """Rows that another version of the suite wrote."""


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table, from its row dataclass; carries the schema version."""
    hints = get_type_hints(TABLES[table])
    columns = [pa.field(f.name, ARROW_TYPES[hints[f.name]], nullable=False) for f in fields(TABLES[table])]
    return pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION)})


def in_this_version(rows: Rows, table: str, path: Path) -> Rows:
    """Rows as read from ``path`` with this version's columns; those of earlier versions are upgraded.

    Raises SchemaVersionError where they are of a later version, or have columns that no version had.
    """
    version = (rows.schema.metadata or {}).get(b"schema_version", b"none").decode(errors="replace")
    known = version.isdecimal() and 1 <= int(version) <= SCHEMA_VERSION
    try:
        found = upgraded(rows, table, arrow_schema(table)) if known else None
    except UnicodeDecodeError:  # the name of a column of a damaged file
        found = None
    if found is None:
        raise SchemaVersionError(
            f"{path}: written with schema version {version}, this is version {SCHEMA_VERSION}; read it with the commit "
            "that wrote it (see environment.json), or measure again"
        )
    return found


def stream_name(table: str, attempt: int, rank: int) -> str:
    return f"{table}.attempt{attempt}.rank{rank}.arrow"


def attempts(run_folder: Path) -> list[int]:
    """The attempts that have written anything, in order."""
    return sorted({int(match["attempt"]) for match, _ in _files(run_folder)})


def completed_blocks(run_folder: Path) -> dict[int, int]:
    """Block -> the attempt that ended it, for every block that did end: it has a BlockRow."""
    ended = _blocks_by_attempt(run_folder, "blocks")
    return {block: attempt for attempt in sorted(ended, reverse=True) for block in ended[attempt]}


def merge(run_folder: Path, table: str) -> pa.Table:
    """One table from the streams of all ranks and attempts; without rows where nothing was written.

    Tables without a ``block`` column belong to experiments that start over: their last attempt counts alone. Raises
    StreamError.
    """
    by_attempt = _batches_by_attempt(run_folder, table)
    schema = arrow_schema(table)
    if "block" not in schema.names:
        last = max(by_attempt, default=0)
        return pa.Table.from_batches(by_attempt.get(last, []), schema)
    if len(attempts(run_folder)) > 1:
        owners = _owners(run_folder)
        by_attempt = {attempt: _owned(batches, attempt, owners) for attempt, batches in by_attempt.items()}
    return pa.Table.from_batches([batch for _, batches in sorted(by_attempt.items()) for batch in batches], schema)


def write_parquet(rows: pa.Table, path: Path) -> None:
    """Rows as Parquet, stamps by their differences: half as large and, of tokens, read in a fifth of the time."""
    stamps = [name for name in rows.column_names if name.endswith("_ns")]
    others = [name for name in rows.column_names if name not in stamps]
    pq.write_table(rows, path, use_dictionary=others, column_encoding=dict.fromkeys(stamps, "DELTA_BINARY_PACKED"))


def _owners(run_folder: Path) -> dict[int, int]:
    """Block -> the attempt whose rows count."""
    begun = _blocks_by_attempt(run_folder, "requests")
    last = {block: attempt for attempt in sorted(begun) for block in begun[attempt]}
    return last | completed_blocks(run_folder)


def _owned(batches: list[pa.RecordBatch], attempt: int, owners: dict[int, int]) -> list[pa.RecordBatch]:
    mine = pa.array([block for block, owner in owners.items() if owner == attempt], pa.int64())
    return [batch.filter(pc.is_in(batch.column("block"), value_set=mine)) for batch in batches]


def _blocks_by_attempt(run_folder: Path, table: str) -> dict[int, set[int]]:
    return {
        attempt: {block for batch in batches for block in batch.column("block").to_pylist()}
        for attempt, batches in _batches_by_attempt(run_folder, table).items()
    }


def _batches_by_attempt(run_folder: Path, table: str) -> dict[int, list[pa.RecordBatch]]:
    found: dict[int, list[pa.RecordBatch]] = {}
    for match, path in _files(run_folder):
        if match["table"] == table:
            found.setdefault(int(match["attempt"]), []).extend(_whole_batches(path, table))
    return found


def _files(run_folder: Path) -> Iterator[tuple[re.Match[str], Path]]:
    """Every stream, by attempt and rank."""
    paths = (run_folder / FOLDER).glob("*.arrow")
    named = [(match, path) for path in paths if (match := _NAME.fullmatch(path.name))]
    yield from sorted(named, key=lambda item: (int(item[0]["attempt"]), int(item[0]["rank"])))


def _whole_batches(path: Path, table: str) -> Iterator[pa.RecordBatch]:
    """The batches of a stream up to where it was cut off; a killed rank leaves a torn tail, maybe no header."""
    try:
        opened = pa.OSFile(str(path))
    except OSError as error:
        raise StreamError(f"{path}: cannot be read ({error}); restore it, or take it out of the folder") from None
    with opened as file:
        try:
            with pa.ipc.open_stream(file) as reader:
                in_this_version(reader.schema.empty_table(), table, path)  # refused even where no batch follows
                while True:
                    batch = reader.read_next_batch()
                    batch.validate(full=True)  # a damaged one would crash its reader: arrow itself trusts lengths
                    yield in_this_version(batch, table, path)
        except (StopIteration, pa.ArrowException, OSError):
            return
