"""Results as terminal text, Markdown, CSV and LaTeX (booktabs)."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Literal

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from analysis.results import Results, Table

Format = Literal["terminal", "markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = ("terminal", "markdown", "csv", "latex")
WIDTH = 120  # columns, where the output is a file or a pipe and COLUMNS does not say
LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def render(results: Sequence[Results], fmt: Format) -> str:
    """All results in one format; CSV holds the tidy rows of all, the others hold the tables for people."""
    if fmt == "csv":
        return csv_text(pd.concat([r.frame for r in results], ignore_index=True))
    return "\n".join(TEXTS[fmt](result) for result in results)


def print_terminal(result: Results, console: Console) -> None:
    """Every table, then the answer last, where the eye ends up."""
    for table in result.tables:
        console.print(rich_table(table))
        for note in table.notes:
            console.print(f"[dim]{escape(note)}[/dim]")
        console.print()
    console.print(f"[bold]{escape(result.answer)}[/bold]")
    console.print(escape(result.because))


def terminal() -> Console:
    """Standard output; a pipe and a job's log have no width of their own."""
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console() if wide else Console(width=WIDTH)


def terminal_text(result: Results) -> str:
    buffer = io.StringIO()
    print_terminal(result, Console(file=buffer, width=WIDTH))
    return buffer.getvalue()


def markdown_text(result: Results) -> str:
    parts = [f"## {result.name}\n\n**{result.answer}** {result.because}\n"]
    for table in result.tables:
        align = [":---" if i < table.num_left else "---:" for i in range(len(table.columns))]
        lines = [
            f"| {' | '.join(_markdown_cell(cell) for cell in row)} |" for row in (table.columns, align, *table.rows)
        ]
        parts.append(f"### {table.title}\n\n" + "\n".join(lines) + "\n")
        parts += [f"{note}\n" for note in table.notes]
    return "\n".join(parts)


def latex_text(result: Results) -> str:
    """One ``table`` per Table; needs ``\\usepackage{booktabs}`` and text fonts with the usual symbols."""
    parts = ["% " + " ".join(f"{result.name}: {result.answer}".splitlines())]
    for table in result.tables:
        columns = "l" * table.num_left + "r" * (len(table.columns) - table.num_left)
        body = [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in (table.columns, *table.rows)]
        parts += [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_latex_cell(table.title)}}}",
            rf"  \begin{{tabular}}{{{columns}}}",
            r"    \toprule",
            f"    {body[0]}",
            r"    \midrule",
            *(f"    {line}" for line in body[1:]),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par\footnotesize {_latex_cell(note)}" for note in table.notes),
            r"\end{table}",
        ]
    return "\n".join(parts) + "\n"


def csv_text(frame: pd.DataFrame) -> str:
    return str(frame.to_csv(index=False, lineterminator="\n"))


TEXTS = {"terminal": terminal_text, "markdown": markdown_text, "latex": latex_text}


def rich_table(table: Table) -> RichTable:
    """A table for the terminal, as every program prints it."""
    shown = RichTable(
        title=escape(table.title), box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False
    )
    for i, column in enumerate(table.columns):
        shown.add_column(escape(column), justify="left" if i < table.num_left else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*(escape(cell) for cell in row))
    return shown


def _markdown_cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", r"\|")


def _latex_cell(text: str) -> str:
    """Text as LaTeX. A cell that begins with a bracket would be read as an option of the line end before it."""
    told = re.sub(r"[\\&%$#_{}~^<>]", lambda found: LATEX_SPECIAL[found.group()], " ".join(text.splitlines()))
    return "{[}" + told[1:] if told.startswith("[") else told
