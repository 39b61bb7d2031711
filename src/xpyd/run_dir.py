"""The run folder: frozen config, environment, streamed rows, merged tables, and ``DONE`` last.

Ranks append rows to streams (see ``xpyd.streams``); at the end rank 0 merges them to Parquet. No DONE: a partial run,
which another attempt may resume, one at a time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from datetime import datetime
from importlib.abc import MetaPathFinder
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import yaml

from xpyd.lock import hold
from xpyd.records import SCHEMA_VERSION, TABLES
from xpyd.streams import FOLDER, arrow_schema, attempts, completed_blocks, merge, stream_name, write_parquet

FLUSH_INTERVAL_S = 2.0
SYNC_LOOK_S = 1e-3


class RunFolderError(ValueError):
    """A run folder that cannot be made or written, or that holds what no run has written."""


class RunDir:
    """Paths and whole-file writes of one run folder; ``attempt`` numbers the streams that this process writes."""

    def __init__(self, path: Path, attempt: int = 0) -> None:
        self.path = path
        self.attempt = attempt

    @classmethod
    def create(cls, root: Path, experiment: str, name: str | None) -> RunDir:
        """Make a new folder ``root/experiment/name``; the default name is the time with microseconds.

        Raises FileExistsError for a folder that is there already: results are never overwritten.
        """
        path = root / experiment / (name or datetime.now().strftime("%Y%m%d-%H%M%S-%f"))
        try:
            path.mkdir(parents=True, mode=0o700)
        except FileExistsError:
            raise FileExistsError(
                f"run folder {path} exists already; go on with it (run.resume=true), remove it, or choose another "
                "run.name"
            ) from None
        (path / FOLDER).mkdir()
        return cls(path)

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def next_attempt(self) -> int:
        """The number of the attempt that begins now: 0 in a new folder."""
        return max(attempts(self.path), default=-1) + 1

    def completed_blocks(self) -> frozenset[int]:
        """The blocks that attempts so far have ended; of a finished run it knows none."""
        return frozenset(completed_blocks(self.path))

    def write_config(self, config: dict[str, Any]) -> None:
        self._write("config.yaml", yaml.safe_dump(config, sort_keys=False))

    def read_config(self) -> dict[str, Any]:
        """The frozen configuration. Raises RunFolderError where it is damaged."""
        try:
            config = yaml.safe_load((self.path / "config.yaml").read_text())
        except (yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise RunFolderError(
                f"{self.path / 'config.yaml'} holds no config; was it cut off? Choose another run.name"
            )
        return config

    def write_json(self, name: str, content: Any) -> None:
        self._write(name, json.dumps(content, indent=2, default=str) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a JSON file, empty where there is none."""
        path = self.path / name
        content = json.loads(path.read_text()) if path.exists() else {}
        assert isinstance(content, dict)
        return content

    def write_text(self, name: str, text: str) -> None:
        self._write(name, text)

    def finish(self) -> None:
        """Merge the streams to Parquet and write DONE. Rank 0 calls it, after every rank has closed its rows.

        The streams go last: were this cut off anywhere, a next attempt would find every block and merge again.
        """
        for table in TABLES:
            merged = merge(self.path, table)
            if len(merged):
                write_parquet(merged, self.path / f".{table}.parquet.tmp")
                os.replace(self.path / f".{table}.parquet.tmp", self.path / f"{table}.parquet")
        self.write_json("DONE", {"schema_version": SCHEMA_VERSION, "ended_at": datetime.now().isoformat()})
        for stream in (self.path / FOLDER).iterdir():
            stream.unlink()
        (self.path / FOLDER).rmdir()

    def drop_if_empty(self) -> bool:
        """Remove the folder of a run that was refused before it measured anything, so that its name is free again.

        Raises InUseError where another attempt works in it.
        """
        with self.lock():
            empty = not self.done and self.next_attempt() == 0
            if empty:
                shutil.rmtree(self.path)
        return empty

    def lock(self, patience_s: float = 0.0) -> AbstractContextManager[None]:
        """Keep every other attempt out of the folder. Raises InUseError, see ``lock.hold``."""
        return hold(self.path / "lock", patience_s)

    def _write(self, name: str, text: str) -> None:
        """Whole or not at all: a reader never sees half a file."""
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text)
        os.replace(temporary, self.path / name)


class RowWriter:
    """Streams one rank's rows to the run folder. ``write`` only appends to a list; ``flush`` touches the disk."""

    def __init__(self, run_dir: RunDir, rank: int) -> None:
        self._folder = run_dir.path / FOLDER
        self._attempt = run_dir.attempt
        self._rank = rank
        self._pending: dict[type, list[Any]] = {row_type: [] for row_type in TABLES.values()}
        self._streams: dict[str, tuple[pa.OSFile, pa.RecordBatchStreamWriter]] = {}
        self._flushed_at = time.monotonic()
        self.muted = False  # warm-up rows are not written
        self.overheard: list[Any] | None = None  # but kept here, where somebody wants them
        _make_first_array()  # not in a block, where it is a silence

    def write(self, row: Any) -> None:
        if not self.muted:
            self._pending[type(row)].append(row)
        elif self.overheard is not None:
            self.overheard.append(row)

    def write_all(self, rows: list[Any]) -> None:
        """Rows of one table."""
        if rows and not self.muted:
            self._pending[type(rows[0])] += rows

    def flush_if_due(self) -> None:
        """Flush when the last one is over two seconds old; the worker calls it between steps."""
        if time.monotonic() - self._flushed_at > FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Hand all rows to the file system."""
        for table, row_type in TABLES.items():
            rows, self._pending[row_type] = self._pending[row_type], []
            if rows:
                self._stream(table).write_batch(_batch(table, rows))
        for file, _ in self._streams.values():
            file.flush()
        self._flushed_at = time.monotonic()

    def sync(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Flush, and wait until all rows would survive this node's end.

        That may take a shared file system many seconds, in which a rank must not be silent: ``meanwhile`` is called
        again and again. Raises OSError, and what ``meanwhile`` raises.
        """
        self.flush()
        numbers = [file.fileno() for file, _ in self._streams.values()]
        with ThreadPoolExecutor(1) as pool:
            synced = pool.submit(_sync, numbers)
            while not wait([synced], SYNC_LOOK_S).done:
                meanwhile()
        synced.result()

    def close(self) -> None:
        self.flush()
        for file, writer in self._streams.values():
            writer.close()
            file.close()
        self._streams.clear()

    def _stream(self, table: str) -> pa.RecordBatchStreamWriter:
        if table not in self._streams:
            file = pa.OSFile(str(self._folder / stream_name(table, self._attempt, self._rank)), "wb")
            self._streams[table] = (file, pa.ipc.new_stream(file, arrow_schema(table)))
        return self._streams[table][1]

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sync(file_numbers: list[int]) -> None:
    for number in file_numbers:
        os.fsync(number)


class _Hidden(MetaPathFinder):
    """pandas, to those who look for it."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError(f"{fullname} is of no use to a rank")


def _make_first_array() -> None:
    """pyarrow loads pandas, where there is one, for the first array of a process: a second, in every rank."""
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pa.array([])
    finally:
        sys.meta_path.remove(hidden)


def _batch(table: str, rows: list[Any]) -> pa.RecordBatch:
    schema = arrow_schema(table)
    columns = zip(*map(attrgetter(*schema.names), rows), strict=True)  # each row once: no cache holds them all
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)
