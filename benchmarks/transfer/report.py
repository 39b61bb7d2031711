"""Tables for the terminal, JSON for programs, one plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from analysis.format import digits
from analysis.results import Table, titled
from analysis.style import SERIES
from benchmarks.transfer.order import Missing
from benchmarks.transfer.ratios import BULK, Row, Samples, Target, is_limit
from xpyd.units import format_s

COLUMNS = ("case", "carrier", "GB/s", "of pattern limit", "of bulk limit", "CPU s per GB", "pieces/s", "small message")
NOTES = (
    "Limits: the best of socket (by bytes per call) and ucx_perftest, which sends one cached buffer over and over. "
    "Shares: medians over repeats of ratios inside a repeat. CPU: user and system time of both ends; transports poll. "
    "Small message: 8 bytes one way; for nixl one read.",
)
GREY = ("#9aa0a8", "#6b7280", "#c3c7cd", "#3f444c")


def path_table(path: str, pairs: str, rows: Sequence[Row], missing: Sequence[Missing], labels: Sequence[str]) -> Table:
    cells = [
        (
            row.case,
            row.carrier,
            digits(row.gbytes_s),
            _percent(row.pattern_share),
            _percent(row.bulk_share),
            "-" if row.cpu_s_per_gb is None else digits(row.cpu_s_per_gb),
            f"{row.descriptors_per_s:,.0f}",
            "-" if row.small_s is None else format_s(row.small_s),
        )
        for row in rows
    ]
    repeats = f"{min(row.num_repeats for row in rows)} repeats. " if rows else ""
    notes = [repeats + NOTES[0], *(f"Left out: {m.carrier}: {m.reason}" for m in missing)]
    return Table(titled(f"{path}, {pairs} ranks", labels), COLUMNS, cells, notes, num_left=2)


def targets_table(targets: dict[str, Sequence[Target]], labels: Sequence[str]) -> Table:
    cells = [
        (path, target.text, _percent(target.least), _percent(target.found), _verdict(target))
        for path, found in targets.items()
        for target in found
    ]
    return Table(
        titled("Targets of ucx, one pair", labels), ("path", "target", "at least", "found", ""), cells, num_left=2
    )


def write_json(rows: Sequence[Row], targets: dict[str, Sequence[Target]], labels: Sequence[str], path: Path) -> None:
    content = {
        "labels": list(labels),
        "targets": {name: [{**asdict(t), "met": t.met} for t in found] for name, found in targets.items()},
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def draw(samples: Samples, rows: Sequence[Row], labels: Sequence[str], path: Path) -> None:
    """GB/s of every carrier on every case, a panel per path; the line is the bulk limit."""
    panels = list(dict.fromkeys((row.path, row.pairs) for row in rows))
    names = sorted(dict.fromkeys(row.carrier for row in rows), key=lambda name: (not is_limit(name), name))
    greys, colours = iter(GREY * 4), iter(SERIES * 4)
    colour = {name: next(greys if is_limit(name) else colours) for name in names}
    figure = Figure(figsize=(11, 2.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(len(panels), 1, index + 1)
        mine = [row for row in rows if (row.path, row.pairs) == panel]
        shown = list(dict.fromkeys(row.case for row in mine))
        width = 0.85 / len(names)
        for row in mine:
            x = shown.index(row.case) + (names.index(row.carrier) - (len(names) - 1) / 2) * width
            axes.bar(x, row.gbytes_s, width, color=colour[row.carrier])
        bulk = samples.best_limit(*panel, BULK) or next(iter(names))
        for row in mine:
            if (row.case, row.carrier) == (BULK, bulk):
                axes.axhline(row.gbytes_s, color="#3f444c", linewidth=1, linestyle="--")
        axes.set_xticks(range(len(shown)), shown, fontsize=8)
        axes.set_ylabel("GB/s")
        axes.set_title(titled(f"{panel[0]}, {panel[1]} ranks; dashed: bulk limit", labels), fontsize=9, loc="left")
    handles = [figure.axes[0].bar(0, 0, color=colour[name], label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    figure.savefig(path, dpi=140, facecolor="white")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share * 100:.0f} %"


def _verdict(target: Target) -> str:
    return "-" if target.met is None else "met" if target.met else "MISSED"
