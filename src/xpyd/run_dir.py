"""The run folder: frozen config, environment, streamed rows, merged tables, and ``DONE`` last.

Ranks append rows to ``streams/<table>.rank<k>.arrow`` (Arrow IPC streams: readable up to the last whole batch, even
after ``kill -9``; Parquet is unreadable without its footer). Rank 0 merges them to Parquet. No DONE: a partial run.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import fields
from datetime import datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from xpyd.records import SCHEMA_VERSION, TABLES

FLUSH_INTERVAL_S = 2.0
ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}


@cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table, from its row dataclass; carries the schema version."""
    hints = get_type_hints(TABLES[table])
    columns = [pa.field(f.name, ARROW_TYPES[hints[f.name]], nullable=False) for f in fields(TABLES[table])]
    return pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION)})


class RunDir:
    """Paths and whole-file writes of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, root: Path, experiment: str, name: str | None) -> RunDir:
        """Make a new folder ``root/experiment/name``; the default name is the time with microseconds.

        Raises FileExistsError for a folder that is there already: results are never overwritten.
        """
        path = root / experiment / (name or datetime.now().strftime("%Y%m%d-%H%M%S-%f"))
        try:
            path.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            raise FileExistsError(f"run folder {path} exists already; choose another run.name or remove it") from None
        (path / "streams").mkdir()
        return cls(path)

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def write_config(self, config: dict[str, Any]) -> None:
        self._write("config.yaml", yaml.safe_dump(config, sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        config = yaml.safe_load((self.path / "config.yaml").read_text())
        if not isinstance(config, dict):
            raise ValueError(f"{self.path / 'config.yaml'} holds no config; was it cut off?")
        return config

    def write_json(self, name: str, content: Any) -> None:
        self._write(name, json.dumps(content, indent=2, default=str) + "\n")

    def write_text(self, name: str, text: str) -> None:
        self._write(name, text)

    def finish(self) -> None:
        """Merge the streams to Parquet and write DONE. Rank 0 calls it, after every rank has closed its rows."""
        for table in TABLES:
            merged = self._merge(table)
            if merged is not None:
                pq.write_table(merged, self.path / f"{table}.parquet")
        for stream in (self.path / "streams").iterdir():
            stream.unlink()
        (self.path / "streams").rmdir()
        self.write_json("DONE", {"schema_version": SCHEMA_VERSION, "ended_at": datetime.now().isoformat()})

    def _merge(self, table: str) -> pa.Table | None:
        parts = []
        for path in sorted((self.path / "streams").glob(f"{table}.rank*.arrow")):
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                parts.append(reader.read_all())
        return pa.concat_tables(parts) if parts else None

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all: a reader never sees half a file."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text)
        os.replace(temporary, self.path / name)


class RowWriter:
    """Streams one rank's rows to the run folder. ``write`` only appends to a list; ``flush`` touches the disk."""

    def __init__(self, run_dir: RunDir, rank: int) -> None:
        self._folder = run_dir.path / "streams"
        self._rank = rank
        self._pending: dict[type, list[Any]] = {row_type: [] for row_type in TABLES.values()}
        self._streams: dict[str, tuple[pa.OSFile, pa.RecordBatchStreamWriter]] = {}
        self._flushed_at = time.monotonic()
        self.muted = False  # warm-up rows are not kept

    def write(self, row: Any) -> None:
        if not self.muted:
            self._pending[type(row)].append(row)

    def flush_if_due(self) -> None:
        """Flush when the last one is over two seconds old; the worker calls it between steps."""
        if time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        for table, row_type in TABLES.items():
            rows, self._pending[row_type] = self._pending[row_type], []
            if rows:
                self._stream(table).write_batch(_batch(table, rows))
        for file, _ in self._streams.values():
            file.flush()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        self.flush()
        for file, writer in self._streams.values():
            writer.close()
            file.close()
        self._streams.clear()

    def _stream(self, table: str) -> pa.RecordBatchStreamWriter:
        if table not in self._streams:
            file = pa.OSFile(str(self._folder / f"{table}.rank{self._rank}.arrow"), "wb")
            self._streams[table] = (file, pa.ipc.new_stream(file, arrow_schema(table)))
        return self._streams[table][1]

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _batch(table: str, rows: list[Any]) -> pa.RecordBatch:
    schema = arrow_schema(table)
    columns = [pa.array([getattr(row, field.name) for row in rows], field.type) for field in schema]
    return pa.record_batch(columns, schema=schema)
