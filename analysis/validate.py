"""How far predictions are off real runs: signed errors of the simulator, and of what people reckon with instead.

Read by ``analysis.held_out``: every prediction here was frozen before the run that it is held against. Beside the
errors of each arm stand those of one arm over the other, pair by pair: what users decide on, and free of how fast the
machine was just then. The floor is the machine's own: how far a run is off the same cell played once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.format import percent
from analysis.ledger import Sides
from analysis.load import Run
from analysis.results import Table, titled
from xpyd.records import COLOCATED, DISAGGREGATED

SIMULATOR = "simulator"
RANGE = ("simulator, fast", "simulator, slow")  # the machine as fast, or as slow, as it may be: ends of intervals
AT_FIRST = "simulator at the speed seen first"  # a prediction too: of steps that the run timed before any request
AT_SPEED = "simulator at the run's speed"  # no prediction: how far off it is where the machine is not
EARLIER = "an earlier run of the cell"  # no model at all: what the machine lets anybody know
PAIRED = "split over colocated"  # not an arm: one divided by the other, in every pair
# Figures of a frozen cell, and what the tables of a run call them.
FIGURES = {
    "ttft_p50_s": "ttft_s p50",
    "itl_p50_s": "itl_s p50",
    "ttft_p99_s": "ttft_s p99",
    "itl_p99_s": "itl_s p99",
    "goodput_rps": "goodput_rps",
}
TARGETS_PCT = {"ttft_p50_s": 10, "itl_p50_s": 10, "ttft_p99_s": 15, "itl_p99_s": 15, "goodput_rps": 10}
NUM_WORST = 5
COVERED = 0.95  # of the figures should lie in their intervals


@dataclass(frozen=True)
class Scored:
    """A cell that was predicted and then measured. ``figures``: predictor -> arm -> figure, as frozen."""

    name: str
    where: Mapping[str, Any]  # the placement and the axes of the cell
    figures: Mapping[str, Mapping[str, Mapping[str, float]]]
    sides: Sides
    run: Run
    costs: Mapping[str, Any]  # that the map reckons with, as frozen
    ranges: Mapping[str, Mapping[str, tuple[float, float]]]  # arm, or ``PAIRED`` -> figure -> interval, as frozen
    off: float  # the natural logarithm of how much slower than usual the slow end of ``RANGE`` is
    slowness: float  # of the colocated steps of the run, by the calibration
    first_slowness: float  # likewise, of the steps that it timed before its first request
    earlier: Sides | None  # of the run of the same cell before this one


def error_frame(scored: Sequence[Scored]) -> pd.DataFrame:
    """One row per cell, predictor, arm (and ``PAIRED``) and figure: modeled, measured, and the error.

    Arms: means over block pairs; ``PAIRED``: the geometric mean of the pairs' ratios. ``error_pct`` is signed, in
    percent of what was measured; NaN where nothing was. ``low`` and ``high``: the simulator's interval, as it was
    frozen, where the map has one.
    """
    rows = []
    for each in scored:
        measured = measured_figures(each.sides)
        speeds = {AT_FIRST: at_speed(each, each.first_slowness), AT_SPEED: at_speed(each, each.slowness)}
        every: dict[str, Mapping[str, Mapping[str, float]]]
        every = {predictor: with_ratios(arms) for predictor, arms in {**each.figures, **speeds}.items()}
        if each.earlier is not None:
            every[EARLIER] = measured_figures(each.earlier)
        for predictor, arms in every.items():
            if predictor in RANGE:
                continue
            for arm, figures in arms.items():
                for figure in FIGURES:
                    seen, said = measured[arm][figure], figures[figure]
                    ranges = each.ranges.get(arm, {}) if predictor == SIMULATOR else {}
                    low, high = ranges.get(figure, (np.nan, np.nan))
                    rows.append(
                        {
                            "cell": each.name,
                            **each.where,
                            "predictor": predictor,
                            "arm": arm,
                            "figure": figure,
                            "modeled": said,
                            "low": low,
                            "high": high,
                            "measured": seen,
                            "error_pct": 100 * (said - seen) / abs(seen) if seen else np.nan,
                        }
                    )
    return pd.DataFrame(rows)


def at_speed(scored: Scored, slowness: float) -> dict[str, dict[str, float]]:
    """The frozen figures of a machine so much slower than usual, between those of a faster and of a slower one, by arm.

    Empty where the map has none of these, or the slowness is not known. Not beyond their ends.
    """
    fast, usual, slow = (scored.figures.get(name) for name in (RANGE[0], SIMULATOR, RANGE[1]))
    if fast is None or usual is None or slow is None or not (scored.off > 0 and slowness > 0):
        return {}
    at, ends = np.log(slowness), (-scored.off, 0.0, scored.off)
    return {
        arm: {name: float(np.interp(at, ends, [each[arm][name] for each in (fast, usual, slow)])) for name in FIGURES}
        for arm in usual
    }


def measured_figures(sides: Sides) -> dict[str, dict[str, float]]:
    """arm, or ``PAIRED`` -> figure, over all pairs."""
    found: dict[str, dict[str, float]] = {COLOCATED: {}, DISAGGREGATED: {}, PAIRED: {}}
    for figure, column in FIGURES.items():
        found[COLOCATED][figure] = float(sides.colocated[column].mean())
        found[DISAGGREGATED][figure] = float(sides.other[column].mean())
        ratios = sides.other[column] / sides.colocated[column]
        found[PAIRED][figure] = float(np.exp(np.log(ratios).mean())) if (ratios > 0).all() else np.nan
    return found


def with_ratios(arms: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """The frozen figures of the arms, and of one over the other where both are there."""
    found = dict(arms)
    if COLOCATED in arms and DISAGGREGATED in arms:
        split, together = arms[DISAGGREGATED], arms[COLOCATED]
        found[PAIRED] = {name: split[name] / together[name] if together[name] else np.nan for name in FIGURES}
    return found


def error_tables(errors: pd.DataFrame, labels: Sequence[str]) -> list[Table]:
    own = errors[errors["predictor"] == SIMULATOR]
    covered = [coverage_table(own, labels)] if own["low"].notna().any() else []
    return [mean_table(errors, labels), *covered, cell_table(own, labels), worst_table(own, labels)]


def mean_table(errors: pd.DataFrame, labels: Sequence[str]) -> Table:
    """Mean absolute error over cells: a row per predictor and arm, and the target."""
    rows = []
    for (predictor, arm), own in errors.groupby(["predictor", "arm"], sort=False):
        means = own.groupby("figure")["error_pct"].apply(lambda each: each.abs().mean())
        rows.append((str(predictor), str(arm), *(f"{means[figure]:.0f} %" for figure in FIGURES)))
    rows.append(("target", "", *(f"{TARGETS_PCT[figure]} %" for figure in FIGURES)))
    notes = [
        f"Over {errors['cell'].nunique()} cells, none of them seen by the calibration; quantiles are means over "
        f"blocks. {PAIRED}: one arm divided by the other in every pair, so that the machine's speed cancels.",
        "bytes over bandwidth: no latency, no descriptors, the nominal rate. free transfer: KV moves in no time. no "
        "interference: prompts never share a rank with decodes. In the first two KV that moves keeps no step up. All "
        "else is the simulator's.",
        f"{AT_FIRST}: the frozen figures, at the speed of the steps that the run timed before its first request. "
        f"{AT_SPEED}: no prediction, but how much of its error is the machine's: at that of its colocated steps. "
        f"{EARLIER}, where there is one, in the simulator's place: no model can be much nearer than that.",
    ]
    return Table(titled("Mean absolute error", labels), ("predictor", "arm", *_words()), rows, notes, num_left=2)


def coverage_table(own: pd.DataFrame, labels: Sequence[str]) -> Table:
    """How many measured figures lie in the intervals that were frozen for them, and how wide those are."""
    ranged = own[own["low"].notna() & own["measured"].notna()]
    ranged = ranged.assign(
        inside=ranged["measured"].between(ranged["low"], ranged["high"]),
        width=50 * (ranged["high"] - ranged["low"]) / ranged["modeled"].abs(),
    )
    rows = [
        (str(arm), *_inside(each), f"{each['width'].median():.0f} %") for arm, each in ranged.groupby("arm", sort=False)
    ]
    notes = [
        f"Of figures in {ranged['cell'].nunique()} of {own['cell'].nunique()} cells: a map has intervals where its "
        f"calibrations show how the machine drifts, from two on. {COVERED:.0%} should lie inside.",
        "In an interval are the machine's speed in a run, going by how calibrations minutes apart differ, and chance "
        "among a few blocks; what the simulator leaves out is not. Half width: median, of what is modeled.",
    ]
    columns = ("arm", *_words(), "all", "half width")
    return Table(titled("Measured inside the frozen interval", labels), columns, rows, notes)


def _inside(ranged: pd.DataFrame) -> list[str]:
    """``7 of 9``, for each figure and for all."""
    parts = [ranged[ranged["figure"] == figure] for figure in FIGURES]
    return [f"{int(part['inside'].sum())} of {len(part)}" for part in (*parts, ranged)]


def cell_table(own: pd.DataFrame, labels: Sequence[str]) -> Table:
    """Signed errors of the simulator: a row per cell and arm."""
    rows = []
    for (cell, arm), each in own.groupby(["cell", "arm"], sort=False):
        errors = each.set_index("figure")["error_pct"]
        rows.append((str(cell), str(arm), *(percent(float(errors[figure])) for figure in FIGURES)))
    return Table(titled("Signed errors of the simulator", labels), ("cell", "arm", *_words()), rows, num_left=2)


def worst_table(own: pd.DataFrame, labels: Sequence[str]) -> Table:
    """The largest errors of the simulator in an arm."""
    arms = own[own["arm"] != PAIRED]
    order = arms["error_pct"].abs().sort_values(ascending=False, na_position="last").index[:NUM_WORST]
    rows = [
        (
            str(own.loc[index, "cell"]),
            str(own.loc[index, "arm"]),
            FIGURES[str(own.loc[index, "figure"])],
            *(f"{float(own.loc[index, name]):.3g}" for name in ("modeled", "measured")),
            percent(float(own.loc[index, "error_pct"])),
        )
        for index in order
    ]
    columns = ("cell", "arm", "figure", "modeled", "measured", "error")
    return Table(titled("Worst cells of the simulator", labels), columns, rows, num_left=3)


def _words() -> list[str]:
    return [word.replace("_s ", " ").replace("_rps", "") for word in FIGURES.values()]
