"""Where a plan's answer turns: the best split over the best colocated way on other links and lengths, and by rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.format import digits, interval
from analysis.load import Run
from analysis.results import Table, titled
from analysis.saturation_curve import Point, Saturated, ratios, saturated
from analysis.style import MUTED, SERIES
from xpyd.economics.verdict import Interval

AXES = {"link_gbps": ("link", "Gb/s"), "input_len": ("prompt", "tokens")}


@dataclass(frozen=True)
class Turn:
    """One value of an axis: what the best split sustains there, over what the best colocated way does."""

    axis: str
    value: float
    ratio: Interval


def where_it_turns(run: Run, rows: pd.DataFrame) -> list[Turn]:
    """The ratio of the two best ways at every value of every axis."""
    turns = []
    for (axis, value), own in rows[rows["axis"] != ""].groupby(["axis", "value"], sort=True):
        kinds = own.assign(candidate=np.where(own["num_colocated"] == 0, "split", "colocated"))
        found = saturated(points_of(kinds), float(run.config["search"]["attainment"]))
        if {each.arm for each in found} == {"split", "colocated"}:
            turns.append(Turn(str(axis), float(str(value)), ratios(found, "colocated")["split"]))
    return turns


def turn_table(run: Run, turns: Sequence[Turn]) -> Table:
    rows = [
        (
            AXES[turn.axis][0],
            f"{digits(turn.value)} {AXES[turn.axis][1]}",
            interval(turn.ratio, ""),
            word_for(turn.ratio),
        )
        for turn in turns
    ]
    notes = ["The two best ways of the question itself, played anew; an interval over 1 is a tie."]
    columns = ("varied", "value", "best split over best colocated", "")
    return Table(titled("Where the answer turns, measured", run.labels), columns, rows, notes, num_left=2)


def draw_turns(figure: Figure, axis: str, turns: Sequence[Turn]) -> None:
    axes = figure.add_subplot()
    mids = np.array([turn.ratio.mid for turn in turns])
    spread = np.nan_to_num([[t.ratio.mid - t.ratio.low for t in turns], [t.ratio.high - t.ratio.mid for t in turns]])
    axes.errorbar([turn.value for turn in turns], mids, np.maximum(spread, 0), fmt="o-", color=SERIES[0])
    axes.axhline(1, ls="--", color=MUTED, lw=1)
    axes.set(xscale="log", xlabel=" in ".join(AXES[axis]), ylabel="split over colocated", ylim=(0, None))


def points_of(rows: pd.DataFrame) -> list[Point]:
    return [
        Point(str(name), float(str(rate)), own.set_index("repeat")[["attainment"]])
        for (name, rate), own in rows.groupby(["candidate", "rate_rps"], sort=True)
    ]


def turns_of(turns: Sequence[Turn], axis: str) -> list[Turn]:
    return [turn for turn in turns if turn.axis == axis]


def word_for(ratio: Interval) -> str:
    if np.isnan(ratio.mid):
        return "unknown"
    if ratio.known and ratio.low <= 1 <= ratio.high:
        return "tie"
    return "split" if ratio.mid > 1 else "do not split"


def turning(axis: str, turns: Sequence[Turn]) -> str:
    """Between which values of an axis the answer turns."""
    own = turns_of(turns, axis)
    name, unit = AXES[axis]
    words = [word_for(turn.ratio) for turn in own]
    changes = [
        f"between {digits(a.value)} and {digits(b.value)} {unit}{_even_at(a, b, unit)} from {word_for(a.ratio)} to "
        f"{word_for(b.ratio)}"
        for a, b in pairwise(own)
        if word_for(a.ratio) != word_for(b.ratio)
    ]
    if not changes:
        return f"Over the {name} values tried the answer stays: {words[0]}."
    return f"By {name} it turns {', and '.join(changes)}."


def _even_at(a: Turn, b: Turn, unit: str) -> str:
    """Where both ways sustain the same, on a straight line between the logarithms of values and ratios."""
    begin, end = np.log([a.ratio.mid, b.ratio.mid])
    if not begin * end < 0:
        return ""
    return f" (even at about {digits(float(a.value * (b.value / a.value) ** (begin / (begin - end))))} {unit})"


def by_rate(first: Saturated, last: Saturated) -> str:
    """Up to which rate of arrivals it is no matter, and from where on only one of two ways holds."""
    if first.rate.mid > last.rate.mid:
        first, last = last, first
    return (
        f"By rate: up to {interval(first.rate, '1/s')} both hold, from there to {interval(last.rate, '1/s')} only "
        f"{last.arm}, above neither."
    )
