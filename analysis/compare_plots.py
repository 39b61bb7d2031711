"""The plots of a comparison: TTFT, gaps over time with prefill marks, bill against win, model against run, pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.ledger import LEDGER_LINES, OVERALL, Comparison, Line
from analysis.plots import draw_gaps, draw_ttft, draw_whiskers
from analysis.results import Plot
from analysis.style import ARM_COLOURS, COST, GAIN, INK, MARKERS, MUTED, SERIES, seconds_axis
from analysis.timeline import draw_timeline, height_in
from xpyd.records import DISAGGREGATED, NULL


def comparison_plots(comparison: Comparison) -> list[Plot]:
    pair = comparison.pairs[DISAGGREGATED][0]
    return [
        Plot(
            "Bill against win, by prompt length",
            "Seconds per request that splitting costs and saves, measured with 95 % intervals; crosses: modeled. "
            "Splitting pays where win is the longer bar.",
            lambda figure: draw_bill_and_win(figure, comparison),
        ),
        Plot(
            "Time to first token",
            "Share of requests whose first token the client had within x. The dashed line is the configured limit.",
            lambda figure: draw_ttft(figure, comparison.requests, comparison.run.config["slo"]["ttft_s"]),
        ),
        Plot(
            f"Gaps between tokens over time, pair {pair}",
            "Each point is one gap, as the client saw it. Shaded: steps with prefill in them, on any rank of the arm. "
            "Where the two share a rank, gaps grow inside the shade: that is the interference.",
            lambda figure: draw_gaps(figure, comparison.run, comparison.tokens, blocks_of(comparison, pair)),
            height_in=4.6,
        ),
        Plot(
            f"Every request's way, pair {pair}",
            "One bar per request, from its arrival to its last token, by arrival, cut into stages in the order of the "
            "legend; both panels have the same requests. What moved between colours is what splitting changed.",
            lambda figure: draw_timeline(figure, comparison.requests, blocks_of(comparison, pair)),
            height_in=height_in(comparison.requests, blocks_of(comparison, pair)),
        ),
        Plot(
            "Net saving, pair by pair",
            "Each point is one block pair on the same requests. Bars: mean and 95 % interval. The null control plays "
            "the colocated arm twice and should sit on zero.",
            lambda figure: draw_pairs(figure, comparison),
            height_in=2.6,
        ),
        Plot(
            "Modeled against measured",
            "Every ledger line of every length class; the model wrote its values before the first request. On the "
            "line: right.",
            lambda figure: draw_prediction(figure, comparison.lines),
            height_in=4.2,
        ),
    ]


def blocks_of(comparison: Comparison, pair: int) -> dict[str, int]:
    """The block number of each arm of a pair."""
    blocks = comparison.run.tables["blocks"]
    played = blocks[(blocks["pair"] == pair) & blocks["arm"].isin([comparison.rival, DISAGGREGATED])]
    return {str(arm): int(block) for arm, block in sorted(zip(played["arm"], played["block"], strict=True))}


def draw_bill_and_win(figure: Figure, comparison: Comparison) -> None:
    axes = figure.add_subplot()
    places = np.arange(len(comparison.lengths))
    for offset, name, colour, label in ((-0.19, "bill_s", COST, "bill"), (0.19, "win_s", GAIN, "win")):
        lines = [comparison.line(length, name) for length in comparison.lengths]
        heights = [line.measured.mid for line in lines]
        axes.bar(places + offset, heights, 0.36, color=colour, label=label, alpha=0.9)
        draw_whiskers(axes, places + offset, [line.measured for line in lines])
        axes.plot(places + offset, [line.modeled for line in lines], "x", color=INK, markersize=6, label="_")
    axes.plot([], [], "x", color=INK, label="modeled")
    axes.axhline(0, color=MUTED, linewidth=1)
    names = [f"{v.length}\n{v.verdict.answer.value}" for v in comparison.verdicts]
    axes.set_xticks(places, names, fontsize=8)
    axes.set(ylabel="per request", xlabel="input tokens, and the verdict")
    axes.grid(axis="x", visible=False)
    seconds_axis(axes)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)  # above: inside, bars would lie under it


def draw_pairs(figure: Figure, comparison: Comparison) -> None:
    axes = figure.add_subplot()
    net = comparison.line(OVERALL, "net_s")
    rows = [(DISAGGREGATED, "splitting", net.measured), (NULL, "null control", net.null)]
    rows = [row for row in rows if comparison.pairs[row[0]]]
    for place, (arm, _, found) in enumerate(rows):
        values = comparison.sides(OVERALL, arm).ledgers()["net_s"]
        colour = ARM_COLOURS[arm]
        axes.plot(values, np.full(len(values), place) + 0.16, "o", color=colour, markersize=5, alpha=0.6)
        if found.known:
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=3, solid_capstyle="round")
        axes.plot([found.mid], [place], "D", color=colour, markersize=7)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(rows)), [label for _, label, _ in rows])
    axes.set(xlabel="net seconds saved per request", ylim=(-0.5, len(rows) - 0.4))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    seconds_axis(axes, "x")


def draw_prediction(figure: Figure, lines: Sequence[Line]) -> None:
    axes = figure.add_subplot()
    for name, colour, marker in zip(LEDGER_LINES, SERIES, MARKERS, strict=False):
        chosen = [line for line in lines if line.quantity == name and not np.isnan(line.modeled)]
        measured, modeled = [line.measured.mid for line in chosen], [line.modeled for line in chosen]
        axes.plot(modeled, measured, marker, color=colour, label=name.removesuffix("_s"), alpha=0.85, markersize=6)
    low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1, zorder=0)
    axes.set(xlabel="modeled, per request", ylabel="measured, per request", aspect="equal")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    seconds_axis(axes, "x")
    seconds_axis(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))
