"""What a closed-form prediction needs to know of a workload: rate, shares and mean lengths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from xpyd.workload.trace_formats import TraceRow


@dataclass(frozen=True)
class ClassSummary:
    """One class of requests: its share of all, and its mean lengths in tokens."""

    name: str
    share: float
    mean_input_len: float
    mean_output_len: float


@dataclass(frozen=True)
class WorkloadSummary:
    """``rate_rps`` is None in a closed loop. The counts are rows that a trace's options left out."""

    classes: tuple[ClassSummary, ...]
    rate_rps: float | None
    num_rows_empty: int = 0
    num_rows_too_long: int = 0


def summarise_rows(rows: Sequence[TraceRow]) -> tuple[ClassSummary, ...]:
    """Share and mean lengths of each class name among the rows, by name."""
    by_name: defaultdict[str, list[TraceRow]] = defaultdict(list)
    for row in rows:
        by_name[row.class_name].append(row)
    return tuple(
        ClassSummary(
            name,
            len(own) / len(rows),
            fmean(row.input_len for row in own),
            fmean(row.output_len for row in own),
        )
        for name, own in sorted(by_name.items())
    )
