"""The demo's result: both links' verdicts in one table, read from the run folders."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from analysis.format import interval, sentence
from analysis.ledger import ClassVerdict, Comparison
from analysis.load import load_run
from xpyd.economics.verdict import Answer

COLUMNS = ("link", "split?", "bill", "win", "win - bill", "net", "pairs", "route")
LINES = ("bill_s", "win_s", "ledger_s", "net_s")
WIDTH = 160  # where nothing is known of the reader
NOT_OPPOSITE = (
    "The two links do not give opposite verdicts here. A busy machine is the usual reason, as prefill, decode and the "
    "wire share its cores: end other programs, or give more pairs (num_pairs=8)."
)


def print_verdicts(folders: dict[str, Path]) -> None:
    """``folders``: rate of the link (slow first, then fast) to run folder. To stdout."""
    found = {rate: Comparison(load_run(folder)) for rate, folder in folders.items()}
    overall = {rate: comparison.verdicts[0] for rate, comparison in found.items()}
    labels = dict.fromkeys(label for comparison in found.values() for label in comparison.run.labels)
    table = Table(*COLUMNS, title=f"One comparison on two links, measured ({', '.join(labels)})", title_justify="left")
    for rate, comparison in found.items():
        routes = ", ".join(dict.fromkeys(comparison.run.environment["routes"].values()))
        table.add_row(rate, *_cells(overall[rate]), routes)
    console = Console(soft_wrap=True)
    if not console.is_terminal:
        console = Console(width=WIDTH, soft_wrap=True)
    console.print(table)
    for rate, verdict in overall.items():
        note = f" {verdict.pools_note}" if verdict.pools_note else ""
        console.print(f"{rate}: {sentence(verdict.verdict.because)}{note}", highlight=False)
    console.print(sentence(opposite(overall)), highlight=False)
    for rate, folder in folders.items():
        report = folder / "report.html"
        console.print(f"{rate}: {report if report.exists() else folder}", highlight=False)


def opposite(overall: dict[str, ClassVerdict]) -> str:
    """What the two answers, slow first, say together."""
    slow, fast = (verdict.verdict.answer for verdict in overall.values())
    if fast is Answer.SPLIT and slow in (Answer.LINK_TOO_SLOW, Answer.NO_INTERFERENCE):
        return "the same requests, the same ranks, the same settings: only the link differs, and so does the answer"
    return NOT_OPPOSITE


def _cells(found: ClassVerdict) -> tuple[str, ...]:
    intervals = (interval(found.lines[name].measured, "s") for name in LINES)
    return (found.verdict.answer.value, *intervals, str(found.lines["ledger_s"].num_pairs))
