"""Drawings that several experiments share: TTFT, gaps over time with prefill marks, whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.load import Run
from analysis.style import ARM_COLOURS, ARM_LINES, INK, MUTED, cumulative, seconds_axis
from analysis.tokens import Tokens
from xpyd.economics.verdict import Interval
from xpyd.units import NS_PER_S

MAX_MARKS = 400  # prefill steps shaded in one panel
MAX_DOTS = 3000  # beyond, dots become pixels: the page of a long run must still open


def draw_ttft(figure: Figure, requests: pd.DataFrame, limit_s: float) -> None:
    """The distribution of TTFT by arm, with the configured limit."""
    axes = figure.add_subplot()
    for arm, chosen in requests.groupby("arm", sort=True):
        values = chosen["ttft_s"].dropna().to_numpy()
        cumulative(axes, values, str(arm), ARM_COLOURS[str(arm)], ARM_LINES.get(str(arm), "-"))
    axes.axvline(limit_s, color=MUTED, linestyle=(0, (6, 3)), linewidth=1)
    axes.set(xscale="log", xlabel="TTFT, as the client saw it", ylabel="share of requests", ylim=(0, 1.02))
    seconds_axis(axes, "x")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left")


def draw_gaps(figure: Figure, run: Run, tokens: Tokens, blocks: Mapping[str, int]) -> None:
    """Every gap over time, one panel per arm of ``blocks`` (arm -> block number), prefill steps shaded."""
    panels = figure.subplots(len(blocks), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, (arm, block) in zip(panels, blocks.items(), strict=True):
        requests = np.flatnonzero(run.tables["requests"]["block"] == block)
        ends_s, gaps_s = tokens.gap_ends_ns(requests) / NS_PER_S, tokens.gaps.of(requests)
        _shade_prefill(axes, run, block)
        axes.plot(ends_s, gaps_s, ".", color=ARM_COLOURS[arm], ms=3, rasterized=len(gaps_s) > MAX_DOTS)
        axes.set(title=arm, ylabel="gap")
        axes.margins(x=0.01, y=0.1)
        seconds_axis(axes)
    panels[-1].set_ylim(0, None)
    panels[-1].set_xlabel("seconds into the block")


def draw_whiskers(axes: Axes, places: Sequence[float] | np.ndarray, found: Sequence[Interval]) -> None:
    """Error bars for the intervals that are known."""
    known = [(place, interval) for place, interval in zip(places, found, strict=True) if interval.known]
    if known:
        x, y = [place for place, _ in known], [interval.mid for _, interval in known]
        low = [interval.mid - interval.low for _, interval in known]
        high = [interval.high - interval.mid for _, interval in known]
        axes.errorbar(x, y, [low, high], fmt="none", ecolor=INK, elinewidth=1.2, capsize=3)


def _shade_prefill(axes: Axes, run: Run, block: int) -> None:
    """Shade the steps with prefill tokens, thinned evenly where there are more than the eye can tell apart."""
    stages, steps = run.tables["stages"], run.tables["steps"]
    origin_ns = stages.loc[stages["block"] == block, "t_ns"].min()
    marked = steps[(steps["block"] == block) & (steps["num_prefill_tokens"] > 0)].sort_values("begin_ns")
    marked = marked.iloc[:: max(1, -(-len(marked) // MAX_MARKS))]
    for begin_ns, end_ns in zip(marked["begin_ns"], marked["end_ns"], strict=True):
        axes.axvspan((begin_ns - origin_ns) / NS_PER_S, (end_ns - origin_ns) / NS_PER_S, color=MUTED, alpha=0.22, lw=0)
