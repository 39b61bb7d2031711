"""Readers of published request traces: one function per format, from a file to rows of (time, lengths).

Nothing is guessed: a value that is not what its column promises is a TraceError that names file, line, column, value
and remedy. Rows are read one by one, so a reader of the first thousand never opens the rest of a large trace.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

from xpyd.units import s_to_ns

MS_PER_S = 1000
NS_PER_US = 1000


class TraceError(ValueError):
    """A trace that cannot be used as asked; the message says where, what and the remedy."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace: when (ns, on the trace's own clock), its lengths in tokens, and what it is called."""

    line: int
    t_ns: int
    input_len: int
    output_len: int
    class_name: str


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file as column -> value, with the place that every error about it names."""

    path: Path
    line: int
    values: Mapping[str, object]

    def length(self, column: str) -> int:
        """A number of tokens: whole, and not negative."""
        value = self.values[column]
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool):
            self.refuse(column, "not a whole number of tokens; correct or remove the row")
        if number < 0:
            self.refuse(column, "a length cannot be negative; correct or remove the row")
        return number

    def number(self, column: str) -> float:
        """A finite number."""
        value = self.values[column]
        try:
            number = float(value) if isinstance(value, str | int | float) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or isinstance(value, bool):
            self.refuse(column, "not a finite number; correct or remove the row")
        return number

    def text(self, column: str) -> str:
        return str(self.values[column])

    def refuse(self, column: str, problem: str) -> NoReturn:
        raise TraceError(f"{self.path}, line {self.line}, column {column}={self.values[column]!r}: {problem}")


def mooncake(path: Path) -> Iterator[TraceRow]:
    """Mooncake's JSON lines: ``timestamp`` (ms), ``input_length``, ``output_length``.

    ``hash_ids`` (which prompts share prefixes) is not read: prompts are random, so no prefix is shared.
    """
    for record in json_records(path, ("timestamp", "input_length", "output_length")):
        t_ns = s_to_ns(record.number("timestamp") / MS_PER_S)
        yield TraceRow(record.line, t_ns, record.length("input_length"), record.length("output_length"), "mooncake")


def azure(path: Path) -> Iterator[TraceRow]:
    """Azure's LLM inference CSV: ``TIMESTAMP`` (ISO date and time, UTC), ``ContextTokens``, ``GeneratedTokens``."""
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    for record in csv_records(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens")):
        try:
            moment = datetime.fromisoformat(record.text("TIMESTAMP").strip())
        except ValueError:
            record.refuse("TIMESTAMP", "not a date and time such as 2023-11-16 18:15:46.680590; correct the row")
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - epoch
        t_ns = since // timedelta(microseconds=1) * NS_PER_US
        yield TraceRow(record.line, t_ns, record.length("ContextTokens"), record.length("GeneratedTokens"), "azure")


def burstgpt(path: Path) -> Iterator[TraceRow]:
    """BurstGPT's CSV: ``Timestamp`` (s), ``Request tokens``, ``Response tokens`` (0: the call failed), ``Log Type``.

    The log type (conversation or API) becomes the class name.
    """
    for record in csv_records(path, ("Timestamp", "Request tokens", "Response tokens", "Log Type")):
        t_ns = s_to_ns(record.number("Timestamp"))
        lengths = record.length("Request tokens"), record.length("Response tokens")
        yield TraceRow(record.line, t_ns, *lengths, record.text("Log Type").strip())


FORMATS: dict[str, Callable[[Path], Iterator[TraceRow]]] = {
    "mooncake": mooncake,
    "azure": azure,
    "burstgpt": burstgpt,
}


def read_trace(path: Path, name: str) -> Iterator[TraceRow]:
    """The rows of a trace in file order, read as they are asked for. Raises TraceError."""
    line = 0
    try:
        for row in FORMATS[name](path):
            line = row.line
            yield row
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; set workload.trace.path to a readable file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}, after line {line}: not plain text ({error}); unpack or repair the file") from None
    if not line:
        raise TraceError(f"{path}: no rows; is the file whole?")


def json_records(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """One record per line of JSON; empty lines are passed over."""
    with path.open(encoding="utf-8-sig") as file:
        for line, text in enumerate(file, start=1):
            if not text.strip():
                continue
            try:
                values = json.loads(text)
            except ValueError:
                values = None
            if not isinstance(values, dict):
                raise TraceError(
                    f"{path}, line {line}: {shorten(text)} is not a JSON object; complete or remove the row"
                )
            require(path, line, columns, values)
            yield Record(path, line, values)


def csv_records(path: Path, columns: tuple[str, ...]) -> Iterator[Record]:
    """One record per CSV row below the header; empty lines are passed over."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = [name.strip() for name in next(rows, [])]
        if not header:
            raise TraceError(f"{path}: no rows; is the file whole?")
        require(path, 1, columns, header)
        for fields in rows:
            if not fields:
                continue
            if len(fields) != len(header):
                raise TraceError(
                    f"{path}, line {rows.line_num}: {len(fields)} fields ({shorten(','.join(fields))}) under a header "
                    f"of {len(header)} columns; complete or remove the row"
                )
            yield Record(path, rows.line_num, dict(zip(header, fields, strict=True)))


def require(path: Path, line: int, columns: tuple[str, ...], found: Mapping[str, object] | list[str]) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise TraceError(
            f"{path}, line {line}: no column {', '.join(missing)} among {', '.join(found)}; rename the columns or set "
            f"workload.trace.format to another of {', '.join(FORMATS)}"
        )


def shorten(text: str, limit: int = 60) -> str:
    text = text.strip()
    return repr(text if len(text) <= limit else text[:limit] + "...")
