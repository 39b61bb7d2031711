"""The preflight for people, tables on a terminal or in a log: who runs where, then every finding; and findings.json."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xpyd.preflight.finding import Finding, Level, count, ordered
from xpyd.run_dir import RunDir

STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}
LOG_WIDTH = 140  # columns where the width is not known: a job's log is read in a wide window


def print_ranks(ranks: Sequence[tuple[int, str, str, str]], file: IO[str] | None = None) -> None:
    """``ranks``: (rank, node, role, cores)."""
    table = _table("Ranks", "rank", "node", "role", "cores")
    for rank, *words in ranks:
        table.add_row(str(rank), *(escape(word) for word in words))
    _console(file).print(table)


def print_findings(findings: Sequence[Finding], file: IO[str] | None = None) -> None:
    """One table, grouped by topic, and a last line that counts."""
    table = _table("Preflight", "topic", "", "check", "found, and what to do")
    last = None
    for finding in ordered(findings):
        if finding.topic is not last and last is not None:
            table.add_section()
        topic = finding.topic.value if finding.topic is not last else ""
        last = finding.topic
        level = f"[{STYLES[finding.level]}]{finding.level}[/]"
        remedy = f"\n[bold]do:[/bold] {escape(finding.remedy)}" if finding.remedy else ""
        table.add_row(topic, level, escape(finding.check), escape(finding.found) + remedy)
    console = _console(file)
    console.print(table)
    console.print(summary(findings))


def write_findings(run_dir: RunDir, findings: Sequence[Finding], **facts: Any) -> None:
    """findings.json of a run folder: counts, findings, and whatever else was learned."""
    content = {
        "num_errors": count(findings, Level.ERROR),
        "num_warnings": count(findings, Level.WARNING),
        "findings": [asdict(finding) for finding in ordered(findings)],
    }
    run_dir.write_json("findings.json", {**content, **facts})


def summary(findings: Sequence[Finding]) -> str:
    errors, warnings = count(findings, Level.ERROR), count(findings, Level.WARNING)
    return f"{_number(errors, 'error')}, {_number(warnings, 'warning')}, {count(findings, Level.OK)} ok"


def _number(amount: int, word: str) -> str:
    return f"{amount} {word}{'' if amount == 1 else 's'}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console(file: IO[str] | None) -> Console:
    return Console(file=file, highlight=False, width=None if _width_is_known(file or sys.stdout) else LOG_WIDTH)


def _width_is_known(file: IO[str]) -> bool:
    """mpirun gives its ranks a terminal of width 0, and a batch job has none."""
    if "COLUMNS" in os.environ:
        return True
    try:
        return os.get_terminal_size(file.fileno()).columns > 0
    except (OSError, ValueError):
        return False
