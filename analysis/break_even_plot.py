"""The map as small multiples: link by prompt length, a panel for every rate (across) and output length (down)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from analysis.style import COST, GAIN, GRID, INK, MUTED
from xpyd.economics.break_even import SPLIT, STAY, UNDECIDED, Cell
from xpyd.units import format_s

if TYPE_CHECKING:
    from analysis.break_even import Mapped

COLOURS = {SPLIT: GAIN, STAY: COST, UNDECIDED: GRID}
HATCH = "///"
MAX_WORDS = 40  # cells of a panel that still have room for a number
PANEL_IN, LEGEND_IN = 1.9, 0.7


def height_of(cells: Sequence[Cell]) -> float:
    """Inches: a row of panels per output length."""
    return LEGEND_IN + PANEL_IN * len({cell.output_len for cell in cells})


def draw_map(figure: Figure, cells: Sequence[Mapped]) -> None:
    """Classes as colours, undecided ones hatched, and the line at which nothing is saved or lost."""
    outputs = sorted({each.cell.output_len for each in cells})
    rates = sorted({each.cell.rate_rps for each in cells})
    panels = figure.subplots(len(outputs), len(rates), squeeze=False, sharex=True, sharey=True)
    for row, output_len in enumerate(outputs):
        for column, rate_rps in enumerate(rates):
            own = [each for each in cells if (each.cell.output_len, each.cell.rate_rps) == (output_len, rate_rps)]
            axes = panels[row][column]
            _panel(axes, own)
            axes.set_title(f"{rate_rps:g} requests /s, {output_len} tokens out")
            if row == len(outputs) - 1:
                axes.set_xlabel("link, Gb/s")
            if column == 0:
                axes.set_ylabel("input tokens")
    patches = [
        Patch(facecolor=colour, edgecolor=MUTED, alpha=0.75, hatch=HATCH if answer == UNDECIDED else None, label=answer)
        for answer, colour in COLOURS.items()
    ]
    figure.legend(handles=patches, loc="outside upper center", ncols=len(patches))


def _panel(axes: Axes, cells: Sequence[Mapped]) -> None:
    links = sorted({each.cell.link_gbps for each in cells})
    lengths = sorted({each.cell.input_len for each in cells})
    saved = np.full((len(lengths), len(links)), np.nan)
    for each in cells:
        x, y = links.index(each.cell.link_gbps), lengths.index(each.cell.input_len)
        saved[y, x] = each.saved.mid
        hatch = HATCH if each.answer == UNDECIDED else None
        colour = COLOURS[each.answer]
        box = Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor=MUTED, hatch=hatch, lw=0.4, alpha=0.75)
        axes.add_patch(box)
        if len(cells) <= MAX_WORDS:
            axes.text(x, y, format_s(each.saved.mid), ha="center", va="center", fontsize=6.5, color=INK)
    _break_even_line(axes, saved)
    axes.set(xlim=(-0.5, len(links) - 0.5), ylim=(-0.5, len(lengths) - 0.5))
    axes.set_xticks(range(len(links)), [f"{link:g}" for link in links])
    axes.set_yticks(range(len(lengths)), [str(length) for length in lengths])
    axes.grid(visible=False)


def _break_even_line(axes: Axes, saved: NDArray[np.float64]) -> None:
    """Along the edges between cells where splitting saves time and cells where it costs time."""
    pays = saved > 0
    known = np.isfinite(saved)
    for y, x in np.argwhere((pays[:, 1:] != pays[:, :-1]) & known[:, 1:] & known[:, :-1]):
        axes.plot([x + 0.5, x + 0.5], [y - 0.5, y + 0.5], color=INK, lw=2.2, solid_capstyle="projecting")
    for y, x in np.argwhere((pays[1:] != pays[:-1]) & known[1:] & known[:-1]):
        axes.plot([x - 0.5, x + 0.5], [y + 0.5, y + 0.5], color=INK, lw=2.2, solid_capstyle="projecting")
