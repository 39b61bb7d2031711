"""How every plot looks, in one place: colours per arm, sizes, and SVG that follows the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from xpyd.units import format_s

# Colours that stay apart for colour-blind readers (Okabe and Ito), readable on white and on dark.
ARM_COLOURS = {
    "colocated": "#d55e00",
    "colocated_speculative": "#b8860b",
    "colocated_tuned": "#b8860b",
    "disaggregated": "#0072b2",
    "disaggregated_speculative": "#56b4e9",
    "hybrid": "#009e73",
    "null": "#8a8f98",
}
# Nothing is told by colour alone: a line or a mark says the same on a page without any.
ARM_LINES = {"disaggregated": "--", "disaggregated_speculative": "--", "hybrid": "-.", "null": ":"}  # others: whole
MARKERS = ("o", "s", "^", "D", "v", "P")
COST, GAIN, ACCENT = "#cc3f6c", "#009e73", "#7a5cc9"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#7a5cc9", "#b8860b", "#cc3f6c")
# Stand-ins in the drawing; the page swaps them for its own variables, so that plots follow its theme.
INK, MUTED, GRID = "#1f2329", "#6b7280", "#e4e7eb"
THEMED = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}
WIDTH_IN = 6.6
RC = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "svg.hashsalt": "xpyd",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def svg_text(figure: Figure) -> str:
    """The figure as SVG to be put inside HTML: no prolog, no namespaces, no metadata, and the page's own colours."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", dpi=160, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", text, count=1)
    text = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", text, count=1)
    for stand_in, variable in THEMED.items():
        text = text.replace(stand_in, variable)
    return text


def seconds_axis(axes: Axes, which: str = "y") -> None:
    """Ticks such as ``10 ms`` on one axis that holds seconds."""
    axis = axes.yaxis if which == "y" else axes.xaxis
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format_s(value)))


def cumulative(axes: Axes, values: Sequence[float] | np.ndarray, label: str, colour: str, line: str = "-") -> None:
    """The empirical distribution of ``values``: share of samples at or below x."""
    ordered = np.sort(np.asarray(values, dtype=float))
    if len(ordered):
        axes.step(ordered, np.arange(1, len(ordered) + 1) / len(ordered), line, where="post", label=label, color=colour)
