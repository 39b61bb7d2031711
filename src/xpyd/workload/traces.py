"""A slice of a published trace as a workload: which rows are used, what was left out, and how time is scaled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from xpyd.units import NS_PER_S
from xpyd.workload.trace_formats import TraceError, TraceRow, read_trace


@dataclass(frozen=True)
class Trace:
    """The rows that are used, in time order, and how many rows were read and left out, by reason."""

    rows: tuple[TraceRow, ...]
    num_read: int
    num_empty: int
    num_too_long: int


@dataclass(frozen=True)
class TraceConfig:
    """Which part of which file. Rows that are left out are counted in ``Trace``; nothing else changes a row.

    ``start`` and ``limit`` count the rows that are left in. ``rate_scale`` is the one way to change the pace: at 2 the
    gaps are half as long. Without ``sort``, rows out of time order are refused.
    """

    format: Literal["mooncake", "azure", "burstgpt"]
    path: str
    start: Annotated[int, Ge(0)] = 0
    limit: Annotated[int, Gt(0)] | None = None
    max_input_len: Annotated[int, Gt(0)] | None = None  # leave longer rows out
    max_output_len: Annotated[int, Gt(0)] | None = None
    skip_empty: bool = False  # leave out rows without input or output, such as failed calls
    sort: bool = False
    rate_scale: Annotated[float, Gt(0), Lt(float("inf"))] = 1.0

    def load(self) -> Trace:
        """Read the file, no further than ``limit`` asks. Raises TraceError."""
        rows: Iterable[TraceRow] = read_trace(Path(self.path), self.format)
        rows = sorted(rows, key=lambda row: row.t_ns) if self.sort else self._in_order(rows)
        kept: list[TraceRow] = []
        num_read = num_empty = num_too_long = 0
        for row in rows:
            num_read += 1
            if self._empty(row):
                num_empty += 1
            elif self._too_long(row):
                num_too_long += 1
            else:
                kept.append(row)
            if self.limit is not None and len(kept) == self.start + self.limit:
                break
        if len(kept) <= self.start:
            raise TraceError(
                f"{self.path}: none of {num_read} rows is left ({num_empty} empty, {num_too_long} too long, start="
                f"{self.start}); lower workload.trace.start or raise max_input_len, max_output_len"
            )
        return Trace(tuple(kept[self.start :]), num_read, num_empty, num_too_long)

    def offsets_ns(self, rows: Sequence[TraceRow]) -> list[int]:
        """When each row is due, in ns from the first one, with ``rate_scale`` applied."""
        return [round((row.t_ns - rows[0].t_ns) / self.rate_scale) for row in rows]

    def rate_rps(self, rows: Sequence[TraceRow]) -> float:
        """Gaps per second, ``(n - 1) / (last - first)`` with ``rate_scale`` applied; infinite when all come at once."""
        span_s = (rows[-1].t_ns - rows[0].t_ns) / NS_PER_S
        return (len(rows) - 1) / span_s * self.rate_scale if span_s else float("inf")

    def _in_order(self, rows: Iterable[TraceRow]) -> Iterator[TraceRow]:
        last: TraceRow | None = None
        for row in rows:
            if last is not None and row.t_ns < last.t_ns:
                raise TraceError(
                    f"{self.path}, line {row.line}: {(last.t_ns - row.t_ns) / NS_PER_S:g} s before line {last.line}; "
                    "set workload.trace.sort=true to sort the rows by time"
                )
            yield row
            last = row

    def _empty(self, row: TraceRow) -> bool:
        if row.input_len and row.output_len:
            return False
        if not self.skip_empty:
            raise TraceError(
                f"{self.path}, line {row.line}: {row.input_len} input and {row.output_len} output tokens; set "
                "workload.trace.skip_empty=true to leave such rows out, counted"
            )
        return True

    def _too_long(self, row: TraceRow) -> bool:
        return (self.max_input_len is not None and row.input_len > self.max_input_len) or (
            self.max_output_len is not None and row.output_len > self.max_output_len
        )
