"""Goodput against rate: what each arm sustains, how busy its pools are then, and what a million tokens cost.

python -m analysis.saturation runs/saturation/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import command
from analysis.format import NONE, digits, interval, interval_note, number
from analysis.load import Run
from analysis.results import Plot, Results, Table, titled
from analysis.saturation_curve import PRICED, Point, Saturated, curve, ratios, saturated
from analysis.style import ARM_COLOURS, MUTED
from analysis.tables import config_columns
from xpyd.economics.verdict import Interval
from xpyd.records import COLOCATED

DASHES = ("-", "--", ":")


def analyse(run: Run) -> Results:
    """Raises RunError where no block has ended."""
    points = curve(run)
    target = float(run.config["search"]["attainment"])
    found = saturated(points, target)
    against = ratios(found, COLOCATED)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=_answer(found, against, target),
        because="Highest rate of arrivals with the limits met; prices are the configuration's, not measured.",
        tables=[point_table(run, points, found, against), curve_table(run, points)],
        frame=tidy(run, points),
        plots=[
            Plot(
                "Goodput against rate",
                "Requests per second that met both limits, over those offered; bars: 95 % intervals over repeats. On "
                "the dashed line every request meets them.",
                lambda figure: draw_goodput(figure, points),
            ),
            Plot(
                "Attainment against rate",
                "Share of offered requests within both limits. The dotted line is the target, upright lines the "
                "saturation points.",
                lambda figure: draw_attainment(figure, points, found, target),
            ),
            Plot(
                "Use of each pool against rate",
                "Share of the time in which a pool's instances run a step; the most loaded pool ends the climb.",
                lambda figure: draw_use(figure, points),
            ),
        ],
    )


def point_table(
    run: Run, points: Sequence[Point], found: Sequence[Saturated], against: Mapping[str, Interval]
) -> Table:
    """A row per arm: the saturation point, and what the arm is like at the highest rate that it sustained."""
    rows = []
    for each in found:
        low, high = each.bracket
        held = next((point for point in points if (point.arm, point.rate_rps) == (each.arm, low)), None)
        at_best = [NONE] * 3 if held is None else [interval(held.mean("goodput_rps"), "1/s"), _use(held), _cost(held)]
        between = f"{_rate(low)} to {_rate(high)}"
        ratio = NONE if each.arm == COLOCATED else interval(against[each.arm], "")
        rows.append((each.arm, interval(each.rate, "1/s"), between, ratio, *at_best))
    prices = run.config["prices"]
    columns = ("arm", "saturates at", "rates played around it", "over colocated", "goodput there", "use there")
    notes = [
        f"Saturation: attainment falls below {number(float(run.config['search']['attainment']), 'share')}; between two "
        "rates interpolated over the logarithm, attainment made to fall with the rate (isotonic regression).",
        interval_note(int(run.config["search"]["num_repeats"]), "repeats"),
        f"Goodput, use and cost at the highest rate sustained. Cost: {prices['currency']} for a million output tokens "
        f"of requests within the limits; a rank for an hour costs {prices['prefill_rank_hour']} (prefill), "
        f"{prices['decode_rank_hour']} (decode), {prices['colocated_rank_hour']} (colocated), as configured.",
    ]
    return Table(titled("Saturation, measured", run.labels), (*columns, "cost per million tokens"), rows, notes)


def curve_table(run: Run, points: Sequence[Point]) -> Table:
    rows = [
        (
            point.arm,
            digits(point.rate_rps),
            interval(point.mean("attainment"), "share"),
            interval(point.mean("goodput_rps"), "1/s"),
            interval(point.mean("ttft_s p99"), "s"),
            interval(point.mean("itl_s p99"), "s"),
            _use(point),
            _cost(point),
        )
        for point in points
    ]
    columns = ("arm", "offered /s", "attainment", "goodput", "ttft p99", "itl p99", "use", "cost per million")
    slo = run.config["slo"]
    notes = [f"Limits: ttft_s {number(slo['ttft_s'], 's')}, every gap {number(slo['itl_s'], 's')}."]
    return Table(titled("Every rate played, measured", run.labels), columns, rows, notes)


def draw_goodput(figure: Figure, points: Sequence[Point]) -> None:
    axes = figure.add_subplot()
    _curves(axes, points, "goodput_rps")
    top = max(point.rate_rps for point in points)
    bottom = min(point.rate_rps for point in points)
    axes.plot([bottom, top], [bottom, top], "--", color=MUTED, lw=1)
    axes.set(ylabel="goodput, requests /s", yscale="log", ylim=(bottom / 4, None))
    axes.legend(loc="lower left")


def draw_attainment(figure: Figure, points: Sequence[Point], found: Sequence[Saturated], target: float) -> None:
    axes = figure.add_subplot()
    _curves(axes, points, "attainment")
    axes.axhline(target, ls=":", color=MUTED, lw=1)
    for each in found:
        if np.isfinite(each.rate.mid):
            axes.axvline(each.rate.mid, color=ARM_COLOURS[each.arm], lw=0.8)
    axes.set(ylabel="attainment", ylim=(0, 1.05))
    axes.legend(loc="lower left")


def draw_use(figure: Figure, points: Sequence[Point]) -> None:
    axes = figure.add_subplot()
    for arm in dict.fromkeys(point.arm for point in points):
        own = [point for point in points if point.arm == arm]
        for pool, dash in zip(own[0].pools, DASHES, strict=False):
            label = arm if pool == arm or len(own[0].pools) == 1 else f"{arm}, {pool}"
            shares = [point.mean(f"use {pool}").mid for point in own]
            axes.plot(
                [point.rate_rps for point in own], shares, dash, marker="o", ms=3, color=ARM_COLOURS[arm], label=label
            )
    axes.set(xscale="log", xlabel="offered, requests /s", ylabel="use", ylim=(0, 1.05))
    axes.legend(loc="upper left")


def _curves(axes: Axes, points: Sequence[Point], figure: str) -> None:
    for arm in dict.fromkeys(point.arm for point in points):
        own = [point for point in points if point.arm == arm]
        found = [point.mean(figure) for point in own]
        mids = np.array([each.mid for each in found])
        spread = np.nan_to_num([[each.mid - each.low for each in found], [each.high - each.mid for each in found]])
        rates = [point.rate_rps for point in own]
        axes.errorbar(rates, mids, np.maximum(spread, 0), fmt="o-", ms=4, lw=1.2, color=ARM_COLOURS[arm], label=arm)
    axes.set(xscale="log", xlabel="offered, requests /s")


def tidy(run: Run, points: Sequence[Point]) -> pd.DataFrame:
    """One row per arm, rate and repeat."""
    parts = [
        point.blocks.reset_index(names="repeat").assign(arm=point.arm, rate_rps=point.rate_rps, **config_columns(run))
        for point in points
    ]
    return pd.concat(parts, ignore_index=True)


def _answer(found: Sequence[Saturated], against: Mapping[str, Interval], target: float) -> str:
    words = [
        f"{each.arm} {interval(each.rate, '1/s')}" if np.isfinite(each.rate.mid) else _unknown(each) for each in found
    ]
    others = [f"{name} {interval(ratio, '')} times colocated" for name, ratio in against.items() if name != COLOCATED]
    shown = [text for text in others if not text.split()[1].startswith(NONE)]
    return f"Sustained at {number(target, 'share')} attainment: {'; '.join([', '.join(words), *shown])}."


def _unknown(each: Saturated) -> str:
    low, high = each.bracket
    if np.isnan(high):
        return f"{each.arm} more than {_rate(low)} (the highest rate played)"
    return f"{each.arm} less than {_rate(high)} (the lowest rate played)"


def _use(point: Point) -> str:
    return ", ".join(f"{pool} {number(point.mean(f'use {pool}').mid, 'share')}" for pool in point.pools)


def _cost(point: Point) -> str:
    return interval(point.mean(PRICED), "")


def _rate(rate_rps: float) -> str:
    return number(rate_rps, "1/s")


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("saturation", __doc__ or ""), ["saturation"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
