"""Judged claims as a table, as tidy rows, and as a plot each: the value with its interval on the range as claimed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.claims.claim import Judgement
from analysis.claims.evaluate import Outcome, PartResult
from analysis.format import NONE, interval, number
from analysis.results import Plot, Results, Table, titled
from analysis.style import ACCENT, GAIN, INK, MUTED, SERIES
from xpyd.units import format_s

EXPERIMENT = "claims"
UNITS = {"ratio": "", "share": "share", "s": "s", "count": ""}
PART_IN, AROUND_IN = 0.75, 0.5  # height of a plot per part and around them


def results(name: str, outcomes: Sequence[Outcome]) -> Results:
    """Everything for the terminal and the files."""
    return Results(name, EXPERIMENT, answer(outcomes), because(outcomes), [claim_table(outcomes)], tidy(outcomes))


def answer(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.judgement for outcome in outcomes)
    words = [f"{counts[each]} {_counted(each, counts[each])}" for each in Judgement if counts[each]]
    return f"Of {len(outcomes)} claims {', '.join(words)}."


def because(outcomes: Sequence[Outcome]) -> str:
    labels = dict.fromkeys(label for outcome in outcomes for label in outcome.labels)
    where = f" Measured with the labels {', '.join(labels)}: figures of this machine, not of another." if labels else ""
    return f"Each holds or does not hold where its interval lies wholly inside or outside the range as claimed.{where}"


def claim_table(outcomes: Sequence[Outcome]) -> Table:
    """A row per part; the claim and its judgement stand on its first."""
    rows = []
    for outcome in outcomes:
        for place, part in enumerate(outcome.parts):
            first = (outcome.claim.name, str(outcome.judgement)) if place == 0 else ("", "")
            rows.append((*first, part.part.name, part.part.claimed.words, value(part), samples(part)))
    notes = [
        "Holds: the 95 % interval lies wholly inside the claimed range, or beyond it on the side that says more.",
        *(f"{outcome.claim.name}: {reason}" for outcome in outcomes for reason in reasons(outcome)),
    ]
    labels = list(dict.fromkeys(label for outcome in outcomes for label in outcome.labels))
    columns = ("claim", "", "part", "claimed", "measured", "samples")
    return Table(titled("Claims of the field, measured", labels), columns, rows, notes, num_left=4)


def value(part: PartResult) -> str:
    return NONE if part.measured is None else interval(part.measured.value, UNITS[part.part.unit])


def samples(part: PartResult) -> str:
    if part.measured is None:
        return NONE
    return f"{part.measured.num_samples} {part.measured.sampled}"


def modeled(part: PartResult) -> str:
    """The figure beside, marked as what it is; empty where there is none."""
    if part.modeled is None:
        return ""
    return f"modeled: {number(part.modeled.value, UNITS[part.part.unit])} ({part.modeled.words})"


def reasons(outcome: Outcome) -> list[str]:
    """Why parts have no value or no interval, and what a model says of them; each said once."""
    found = [text for part in outcome.parts for text in (part.because, modeled(part)) if text]
    return list(dict.fromkeys(found))


def tidy(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """One row per part."""
    return pd.DataFrame([_row(outcome, part) for outcome in outcomes for part in outcome.parts])


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What claims.json holds: a claim with its parts; a value that there is not is null."""
    return [
        {
            "claim": outcome.claim.name,
            "statement": outcome.claim.statement,
            "source": outcome.claim.source,
            "meaning": outcome.claim.meaning,
            "judgement": str(outcome.judgement),
            "conditions": list(outcome.conditions),
            "labels": list(outcome.labels),
            "parts": [
                {key: _plain(found) for key, found in _row(outcome, part).items() if key not in ("claim", "labels")}
                | {"samples": list(part.measured.samples) if part.measured else []}
                for part in outcome.parts
            ],
        }
        for outcome in outcomes
    ]


def plot(outcome: Outcome) -> Plot:
    """Each part on a line of its own: the range as claimed, the samples, the interval."""
    caption = "Shade: as claimed (paler: beyond it on the side that says more). Dots: samples; bar: 95 % interval."
    height = AROUND_IN + PART_IN * len(outcome.parts)
    return Plot(outcome.claim.statement, caption, lambda figure: draw(figure, outcome), height)


def draw(figure: Figure, outcome: Outcome) -> None:
    axes = figure.add_subplot()
    low, high = _view(outcome)
    for place, part in enumerate(reversed(outcome.parts)):
        _draw_range(axes, part, place, (low, high))
        _draw_value(axes, part, place)
    for place, part in enumerate(reversed(outcome.parts)):
        axes.annotate(part.part.name, (0, place + 0.36), xycoords=("axes fraction", "data"), va="bottom", color=INK)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set(xlim=(low, high), ylim=(-0.5, len(outcome.parts) - 0.3))
    formatted = {"share": lambda x, _: f"{100 * x:.3g} %", "s": lambda x, _: format_s(x) if x >= 0 else ""}
    unit = outcome.parts[0].part.unit
    axes.xaxis.set_major_formatter(FuncFormatter(formatted.get(unit, lambda x, _: f"{x:.3g}")))


def _draw_range(axes: Axes, part: PartResult, place: int, view: tuple[float, float]) -> None:
    claimed = part.part.claimed
    for (low, high), alpha in ((claimed.accepted, 0.1), ((claimed.low, claimed.high), 0.22)):
        low, high = max(low, view[0]), min(high, view[1])
        axes.barh(place, high - low, left=low, height=0.6, color=GAIN, alpha=alpha, lw=0)


def _draw_value(axes: Axes, part: PartResult, place: int) -> None:
    if part.modeled is not None:
        axes.plot(part.modeled.value, place, "D", color=ACCENT, markerfacecolor="none", ms=6)
        axes.annotate(
            "modeled", (part.modeled.value, place), (0, 9), textcoords="offset points", ha="center", fontsize=7
        )
    if part.measured is None:
        axes.annotate(
            str(part.judgement), (0.5, place), xycoords=("axes fraction", "data"), va="center", ha="center", color=MUTED
        )
        return
    found = part.measured.value
    axes.plot(part.measured.samples, [place] * len(part.measured.samples), "o", color=SERIES[0], ms=4, alpha=0.35)
    if found.known:
        axes.plot([found.low, found.high], [place, place], color=INK, lw=2, solid_capstyle="butt")
    axes.plot(found.mid, place, "|", color=INK, ms=14, markeredgewidth=2)


def _view(outcome: Outcome) -> tuple[float, float]:
    """An axis that shows every finite end of the ranges, every sample and every modeled figure, with room around."""
    ends: list[float] = []
    for part in outcome.parts:
        ends += [part.part.claimed.low, part.part.claimed.high]
        if part.modeled is not None:
            ends.append(part.modeled.value)
        if part.measured is not None:
            found = part.measured.value
            ends += [*part.measured.samples, found.low, found.mid, found.high]
    finite = np.array([end for end in ends if np.isfinite(end)] or [0.0, 1.0])
    room = 0.12 * (np.ptp(finite) or abs(finite[0]) or 1.0)
    at_zero = finite.min() >= 0 and finite.min() < 0.35 * finite.max()
    return (0.0 if at_zero else float(finite.min() - room)), float(finite.max() + room)


def _row(outcome: Outcome, part: PartResult) -> dict[str, Any]:
    found = part.measured.value if part.measured else None
    low, high = part.part.claimed.accepted
    return {
        "claim": outcome.claim.name,
        "claim_judgement": str(outcome.judgement),
        "part": part.part.name,
        "judgement": str(part.judgement),
        "unit": part.part.unit,
        "claimed": part.part.claimed.words,
        "claimed_low": part.part.claimed.low,
        "claimed_high": part.part.claimed.high,
        "accepted_low": low,
        "accepted_high": high,
        "measured": found.mid if found else np.nan,
        "measured_low": found.low if found else np.nan,
        "measured_high": found.high if found else np.nan,
        "num_samples": part.measured.num_samples if part.measured else 0,
        "sampled": part.measured.sampled if part.measured else "",
        "conditions": part.measured.conditions if part.measured else "",
        "modeled": part.modeled.value if part.modeled else np.nan,
        "because": part.because,
        "labels": ", ".join(outcome.labels),
    }


def _plain(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _counted(judgement: Judgement, count: int) -> str:
    several = {Judgement.HOLDS: "hold here", Judgement.FAILS: "do not hold here"}
    return str(judgement) if count == 1 else several.get(judgement, str(judgement))
