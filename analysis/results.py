"""What an experiment's analysis hands to the command line and to the report: tables, tidy rows, plots, one headline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

Tone = Literal["split", "stay", "open"]


@dataclass(frozen=True)
class Table:
    """A table for people: every cell is text already. ``num_left`` columns hold words, the others hold numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    num_left: int = 1

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), f"{self.title}: ragged rows"


@dataclass(frozen=True)
class Plot:
    """One plot, drawn only when a page needs it. ``draw`` fills an empty figure."""

    title: str
    caption: str
    draw: Callable[[Figure], None]
    height_in: float = 3.6


@dataclass(frozen=True)
class Results:
    """The analysis of one Run. ``frame`` is the same result as tidy rows, for CSV; ``answer`` is the headline."""

    name: str
    experiment: str
    answer: str
    because: str
    tables: Sequence[Table]
    frame: pd.DataFrame
    plots: Sequence[Plot] = ()
    details: Sequence[Table] = field(default=())  # long tables, in the report only
    tone: Tone = "open"  # how the page colours the answer


def found_word(labels: Sequence[str]) -> str:
    """What figures of a run with these labels are."""
    return "simulated" if "modeled" in labels else "measured"


def titled(title: str, labels: Sequence[str]) -> str:
    """A table's title with the run's labels: no figure is shown without them, and none of a model as measured."""
    title = title.replace(", measured", f", {found_word(labels)}")
    return f"{title} [{', '.join(labels)}]" if labels else title
