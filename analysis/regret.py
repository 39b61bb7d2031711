"""What following a plan costs: its ways as they were modeled and as real ranks played them, and what its advice loses.

python -m analysis.regret runs/regret/20260101-120000-000000

``regret = best real way - advised way``, in what the plan ranks by: the rate that a way sustains within the limits. The
best way is chosen by the same runs, which is hard on the plan; a way whose interval reaches the best one's is a tie.
Refuses a plan that was changed after it was frozen, and a run that is older than its plan.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import NONE, digits, interval, interval_note, number
from analysis.load import Run, RunError
from analysis.plan import Weighed, advice, per_hour_of, weigh
from analysis.regret_ways import Played, Regret, over_best, play_of, real_word, regret_of, ties
from analysis.results import Plot, Results, Table, Tone
from analysis.saturation_curve import PRICED, Point, complete, points_of
from analysis.style import ARM_COLOURS, MUTED
from analysis.tables import config_columns
from xpyd.economics.frozen import HASH, FrozenError, read_sealed
from xpyd.economics.prices import PriceConfig
from xpyd.economics.verdict import Interval

FILE = "plan.json"


def analyse(run: Run) -> Results:
    """Raises RunError where no way was played at every repeat, or the plan is not the one that was frozen."""
    plan = read_plan(run)
    ways = pd.DataFrame(plan["ways"])
    weighed = weigh(run, ways)
    points = _points(run, ways)
    played = play_of(run, points, ways)
    best = played[0]
    if not best.at[0]:
        raise RunError(f"{run.paths[0]}: no way held at any rate; lower search.start_rps, or plan with a looser slo")
    word, advised = advice(weighed)
    regret = regret_of(advised, played)
    answer, real = answer_of(advised, regret, played), real_word(played)
    tones: dict[str, Tone] = {"split": "split", "do not split": "stay"}
    planned = f"The plan, frozen {plan['written_at'][:19]}, {HASH} {plan[HASH][:12]}, said: {word}"
    named = f" ({' or '.join(advised)})" if advised else ""
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=answer,
        because=f"{planned}{named}. Real ranks say: {real} ({best.name} sustains most).",
        tables=[regret_table(run, plan, weighed, played, regret), cost_table(run, plan, weighed, played)],
        frame=_frame(run, weighed, played),
        plots=[
            Plot(
                "Modeled against measured",
                "What each way sustains by the plan and on real ranks; on the line both are the same. Bars: 95 % "
                "intervals over repeats.",
                lambda figure: draw(figure, weighed, played),
            )
        ],
        details=[rate_table(run, points)],
        tone=tones.get(real, "open"),
    )


def read_plan(run: Run) -> dict[str, Any]:
    """The plan that the run was started with. Raises RunError where it is another, or younger than the run."""
    folder = run.paths[0]
    try:
        plan = read_sealed(folder / FILE)
    except FrozenError as error:
        raise RunError(str(error)) from None
    if plan[HASH] != run.config["regret"]["sha256"]:
        raise RunError(f"{folder / FILE}: another plan than the run was started with; restore it, or measure anew")
    started = str(run.environment.get("started_at", ""))
    if not started or datetime.fromisoformat(started) <= datetime.fromisoformat(plan["written_at"]):
        raise RunError(
            f"{folder}: began {started or 'at an unknown time'}, and its plan was frozen {plan['written_at']}: it is "
            "no prediction of it; measure again"
        )
    return plan


def _points(run: Run, ways: pd.DataFrame) -> list[Point]:
    """Every way at every rate that all repeats have played."""
    prices = PriceConfig(**run.config["prices"])
    per_hour = {str(name): per_hour_of(prices, own.iloc[0]) for name, own in ways.groupby("candidate")}
    points = complete(points_of(run, lambda name: per_hour[name]))
    whole = int(run.config["search"]["num_repeats"])
    if len(points[0].blocks) < whole:
        raise RunError(f"{run.paths[0]}: no rate was played {whole} times yet; let the run go on (run.resume=true)")
    return points


def answer_of(advised: Sequence[str], regret: Regret | None, played: Sequence[Played]) -> str:
    """The regret in a sentence or two."""
    found = {each.name for each in played}
    if not advised:
        return "No regret to tell: the plan had no answer; see what its page says."
    if regret is None:
        absent = ", ".join(name for name in advised if name not in found)
        return f"No regret to tell: {absent}, which the plan advised, was not played."
    tied = ties(played)
    beside = f" {', '.join(tied)} cannot be told from it." if tied else ""
    if regret.advised == regret.best:
        best = f"of {len(played)} real ways none sustains more than {regret.best}, which the plan advised"
        return f"No regret: {best}.{beside}"
    at_least = "" if _known(regret.advised, played) and _known(regret.best, played) else "at least "
    lost = (
        f"{regret.advised}, which the plan advised, sustains {at_least}{interval(regret.rate, '1/s')} "
        f"({interval(regret.relative, 'share')}) less than {regret.best}"
    )
    return f"Regret: {lost}." if regret.told else f"No regret that can be told from none: {lost}."


def regret_table(
    run: Run, plan: Mapping[str, Any], weighed: Sequence[Weighed], played: Sequence[Played], regret: Regret | None
) -> Table:
    """A row per way, the best real one first; those that were not played last."""
    said, real = {each.name: each for each in weighed}, {each.name: each for each in played}
    said_places = {each.name: str(place) for place, each in enumerate(weighed, start=1)}
    tied, best = ties(played), played[0]
    rows = []
    for place, name in enumerate([*real, *(name for name in said if name not in real)], start=1):
        way, model = real.get(name), said[name].found.rate
        advised = regret is not None and name in advice(weighed)[1]
        words = [*(["advised"] * advised), *(["best"] if way is best else ["ties with the best"] * (name in tied))]
        over = NONE if way is None or way is best else interval(over_best(way, best), "")
        ratio = NONE if way is None else _ratio(way.rate.mid, model.mid)
        measured = (NONE, NONE) if way is None else (_sustains(way), str(place))
        rows.append((name, interval(model, "1/s"), said_places[name], *measured, ratio, over, ", ".join(words)))
    columns = ("way", "plan: sustains", "place", "real: sustains", "place", "real over plan", "real over best", "")
    notes = [
        "Sustains: the rate of arrivals at which attainment falls below "
        f"{number(float(run.config['search']['attainment']), 'share')}. All ways took turns on the same requests.",
        interval_note(int(run.config["search"]["num_repeats"]), "repeats"),
    ]
    if regret is not None:
        notes.insert(0, f"Regret: {interval(regret.rate, '1/s')}, {interval(regret.relative, 'share')} of the best.")
    if absent := [name for name in said if name not in real]:
        why = "the run is not whole, go on with run.resume=true" if run.partial else "assumed codecs are no real ones"
        notes.append(f"Not played: {', '.join(absent)} ({why}).")
    return Table(_titled("The plan against real ranks", run, plan), columns, rows, notes)


def cost_table(run: Run, plan: Mapping[str, Any], weighed: Sequence[Weighed], played: Sequence[Played]) -> Table:
    said, currency = {each.name: each for each in weighed}, run.config["prices"]["currency"]
    rows = [
        (
            way.name,
            interval(said[way.name].goodput, "1/s"),
            interval(way.goodput, "1/s"),
            _cost(said[way.name].cost),
            _cost(way.cost),
        )
        for way in played
    ]
    priced = [f"{source}: {currency} per million" for source in ("plan", "real")]
    columns = ("way", "plan: goodput", "real: goodput", *priced)
    notes = ["Each at the highest rate played that held; prices are configured, of output tokens within the limits."]
    return Table(_titled("Goodput and cost", run, plan), columns, rows, notes)


def rate_table(run: Run, points: Sequence[Point]) -> Table:
    figures = {"attainment": "share", "goodput_rps": "1/s", "ttft_s p99": "s", "itl_s p99": "s", PRICED: ""}
    rows = [
        (point.arm, digits(point.rate_rps), *(interval(point.mean(name), unit) for name, unit in figures.items()))
        for point in points
    ]
    columns = ("way", "offered /s", "attainment", "goodput", "ttft p99", "itl p99", "cost per million")
    slo = run.config["slo"]
    notes = [f"Limits: ttft_s {number(slo['ttft_s'], 's')}, every gap {number(slo['itl_s'], 's')}."]
    return Table(f"Every rate played, measured [{', '.join(run.labels)}]", columns, rows, notes)


def draw(figure: Figure, weighed: Sequence[Weighed], played: Sequence[Played]) -> None:
    axes = figure.add_subplot()
    said, ends = {each.name: each.found.rate for each in weighed}, []
    for way in played:
        model, real = said[way.name], way.rate
        if np.isnan(model.mid) or np.isnan(real.mid):
            continue
        colour = ARM_COLOURS["disaggregated" if way.splits else "colocated"]
        axes.plot(model.mid, real.mid, "o", color=colour)
        if model.known:
            axes.plot([model.low, model.high], [real.mid, real.mid], color=colour, lw=1)
        if real.known and np.isfinite(real.high):
            axes.plot([model.mid, model.mid], [real.low, real.high], color=colour, lw=1)
        axes.annotate(way.name, (model.mid, real.mid), xytext=(6, 4), textcoords="offset points", fontsize=8)
        ends += [model.mid, real.mid]
    if ends:
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], ls="--", color=MUTED, lw=1)
    axes.set(xscale="log", yscale="log", xlabel="modeled, requests /s", ylabel="measured, requests /s")


def _known(name: str, played: Sequence[Played]) -> bool:
    return any(each.name == name and each.at[0] == each.at[1] for each in played)


def _sustains(way: Played) -> str:
    if way.at[0] == way.at[1]:
        return interval(way.rate, "1/s")
    low, high = way.at
    return f"more than {number(low, '1/s')}" if np.isinf(high) else f"less than {number(high, '1/s')}"


def _ratio(real: float, model: float) -> str:
    return digits(real / model) if np.isfinite(real) and np.isfinite(model) else NONE


def _cost(cost: Interval) -> str:
    return interval(cost, "") if np.isfinite(cost.mid) else NONE


def _titled(title: str, run: Run, plan: Mapping[str, Any]) -> str:
    return f"{title} [plan: {', '.join(plan['labels'])}; real: {', '.join(run.labels)}]"


def _frame(run: Run, weighed: Sequence[Weighed], played: Sequence[Played]) -> pd.DataFrame:
    """A row per way and source."""
    found: list[tuple[str, str, Interval, Interval, Interval]] = [
        (each.name, "modeled", each.found.rate, each.goodput, each.cost) for each in weighed
    ]
    found += [(each.name, "measured", each.rate, each.goodput, each.cost) for each in played]
    rows = [
        {"way": name, "source": source}
        | {
            f"{figure}_{end}": getattr(value, end)
            for figure, value in (("sustained_rps", rate), ("goodput_rps", goodput), ("cost_per_million", cost))
            for end in ("low", "mid", "high")
        }
        for name, source, rate, goodput, cost in found
    ]
    return pd.DataFrame(rows).assign(**config_columns(run))


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("regret", __doc__ or ""), ["regret"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
