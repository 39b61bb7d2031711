"""What benchmarks print and write: tables for the terminal, rows for programs."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.render import rich_table
from analysis.results import Table

MIN_WIDTH = 170  # columns of a terminal or a log: their tables are wide


def print_tables(tables: Sequence[Table]) -> None:
    console = Console(width=max(Console().width, MIN_WIDTH))
    for table in tables:
        console.print(rich_table(table))
        for note in table.notes:
            console.print(note, style="dim", markup=False)
        console.print()


def write_csv(rows: Sequence[Any], kind: type, path: Path) -> None:
    """One line per row; ``kind`` is the rows' dataclass, which names the columns where there is no row."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
