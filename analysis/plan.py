"""Split or not, in which ratio, how wide, at what cost: what each way to use the ranks sustains, and where that turns.

python -m analysis.plan runs/plan/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import NONE, digits, interval, interval_note, number
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.plan_turns import (
    AXES,
    by_rate,
    draw_turns,
    points_of,
    turn_table,
    turning,
    turns_of,
    where_it_turns,
    word_for,
)
from analysis.results import Plot, Results, Table, Tone, titled
from analysis.saturation_curve import Saturated, ratios, saturated
from analysis.style import ARM_COLOURS, MUTED
from analysis.tables import config_columns
from xpyd.economics.prices import PriceConfig, cost_per_million
from xpyd.economics.verdict import Interval

MAX_SHOWN = 12  # candidates in the table; the CSV holds all


@dataclass(frozen=True)
class Weighed:
    """A candidate: what it sustains, and at the highest rate that held, its goodput, price, and who moved."""

    name: str
    splits: bool | None  # None: a hybrid way in which no request moves
    found: Saturated
    goodput: Interval  # requests per second
    cost: Interval  # of a million output tokens within the limits
    moved_share: float = np.nan  # of the requests, where each is routed by its cost
    threshold_tokens: float = np.nan


def analyse(run: Run) -> Results:
    """Raises RunError where there is nothing to tell."""
    rows = run.tables["plan"]
    if rows.empty:
        raise RunError(f"{run.paths[0]}: no candidate was played; let the run go on, or start it anew")
    weighed = weigh(run, rows[rows["axis"] == ""])
    turns = where_it_turns(run, rows)
    split, together = best_of(weighed)
    verdict, tone = _verdict(split, together)
    tables = [candidate_table(run, weighed), *([turn_table(run, turns)] if turns else [])]
    because = ["Modeled, every figure.", *(turning(axis, turns) for axis in AXES if turns_of(turns, axis))]
    if split and together and not np.isnan([split.found.rate.mid, together.found.rate.mid]).any():
        because.append(by_rate(split.found, together.found))
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=verdict,
        because=" ".join(because),
        tables=tables,
        frame=rows.assign(**config_columns(run)),
        plots=[
            Plot(
                "What each way to use the ranks sustains",
                "Highest rate of arrivals with the limits met; bars: 95 % intervals over repeats.",
                lambda figure: draw_candidates(figure, weighed),
            ),
            *(
                Plot(
                    f"Where the answer turns: {AXES[axis][0]}",
                    "The best split over the best colocated way; below the dashed line splitting loses.",
                    lambda figure, axis=axis: draw_turns(figure, axis, turns_of(turns, axis)),  # type: ignore[misc]
                )
                for axis in AXES
                if turns_of(turns, axis)
            ),
        ],
        tone=tone,
    )


def weigh(run: Run, rows: pd.DataFrame) -> list[Weighed]:
    """Every candidate, the one that sustains most first; of equals the cheaper."""
    prices = PriceConfig(**run.config["prices"])
    found = {each.arm: each for each in saturated(points_of(rows), float(run.config["search"]["attainment"]))}
    weighed = []
    for name, own in rows.groupby("candidate", sort=False):
        first = own.iloc[0]
        held = own[own["rate_rps"] == found[str(name)].bracket[0]]
        per_hour = per_hour_of(prices, first)
        moved_share = float(held["moved_share"].mean()) if first["hybrid"] and len(held) else np.nan
        weighed.append(
            Weighed(
                name=str(name),
                splits=None if moved_share == 0 else bool(first["num_colocated"] == 0),
                found=found[str(name)],
                goodput=bootstrap_mean(held["goodput_rps"]),
                cost=bootstrap_mean([cost_per_million(per_hour, tokens) for tokens in held["good_tokens_per_s"]]),
                moved_share=moved_share,
                threshold_tokens=float(held["threshold_tokens"].median()) if first["hybrid"] else np.nan,
            )
        )
    return sorted(
        weighed, key=lambda each: (-np.nan_to_num(each.found.rate.mid), np.nan_to_num(each.cost.mid, nan=np.inf))
    )


def per_hour_of(prices: PriceConfig, row: pd.Series) -> float:
    """What the ranks of a candidate cost for an hour, from a row of it."""
    ranks = [int(row[f"num_{role}"] * row[f"{role}_tp"]) for role in ("prefill", "decode", "colocated")]
    return prices.per_hour(num_colocated=sum(ranks)) if row["hybrid"] else prices.per_hour(*ranks)


def best_of(weighed: Sequence[Weighed]) -> tuple[Weighed | None, Weighed | None]:
    """The best split and the best colocated candidate; None where there is none."""
    split, together = (next((each for each in weighed if each.splits == splits), None) for splits in (True, False))
    return split, together


def candidate_table(run: Run, weighed: Sequence[Weighed]) -> Table:
    base = next((each for each in weighed if each.splits is False), None)
    against = ratios([each.found for each in weighed], base.name) if base is not None else {}
    currency = run.config["prices"]["currency"]
    rows = [
        (
            each.name,
            interval(each.found.rate, "1/s"),
            NONE if base is None or each is base else interval(against[each.name], ""),
            interval(each.goodput, "1/s"),
            interval(each.cost, "") if np.isfinite(each.cost.mid) else NONE,
        )
        for each in weighed[:MAX_SHOWN]
    ]
    columns = ("way", "sustains", "over best colocated", "goodput there", f"{currency} per million tokens")
    target = number(float(run.config["search"]["attainment"]), "share")
    notes = [
        f"Sustains: the rate at which attainment falls below {target}; goodput and cost at the highest rate played "
        "that held. Prices are the configuration's.",
        interval_note(int(run.config["search"]["num_repeats"]), "repeats"),
        f"Not weighed: {', '.join(_left_out(run))}.",
        *(_moved(each) for each in weighed if not np.isnan(each.moved_share)),
    ]
    if len(weighed) > MAX_SHOWN:
        notes.append(f"The best {MAX_SHOWN} of {len(weighed)}; --format csv has all.")
    return Table(titled("Ways to use the ranks, measured", run.labels), columns, rows, notes)


def _left_out(run: Run) -> list[str]:
    asked = run.config["plan"]
    left = [] if asked.get("codecs") or asked.get("codec_run") else ["codecs (plan.codecs, plan.codec_run)"]
    left += [] if asked.get("hybrid") else ["hybrid routing (plan.hybrid)"]
    return [*left, "pipeline, context and expert parallel instances"]


def _moved(way: Weighed) -> str:
    if way.moved_share == 0:
        return f"{way.name}: every request stays, by its cost."
    return (
        f"{way.name}: {number(way.moved_share, 'share')} of the requests move, by and large prompts of "
        f"{digits(way.threshold_tokens)} tokens and more."
    )


def draw_candidates(figure: Figure, weighed: Sequence[Weighed]) -> None:
    axes = figure.add_subplot()
    shown = list(weighed[:MAX_SHOWN])[::-1]
    for place, each in enumerate(shown):
        rate = each.found.rate
        colour = ARM_COLOURS["disaggregated" if each.splits else "colocated"]
        axes.barh(place, np.nan_to_num(rate.mid), color=colour, height=0.6)
        if rate.known:
            axes.plot([rate.low, rate.high], [place, place], color=MUTED, lw=1.5)
    axes.set_yticks(range(len(shown)), [each.name for each in shown])
    axes.set(xlabel="sustained, requests /s", xlim=(0, None))


def _verdict(split: Weighed | None, together: Weighed | None) -> tuple[str, Tone]:
    if split is None or together is None:
        return "Only one kind of candidate was played; no answer.", "open"
    if np.isnan(split.found.rate.mid) or np.isnan(together.found.rate.mid):
        shown = ", ".join(each.name for each in (split, together) if np.isnan(each.found.rate.mid))
        return f"No answer: {shown} never gave way, or never held; raise search.max_rps or loosen slo.", "open"
    ratio = ratios([split.found, together.found], together.name)[split.name]
    what = (
        f"{split.name} sustains {interval(split.found.rate, '1/s')}, {interval(ratio, '')} times {together.name} "
        f"({interval(together.found.rate, '1/s')}); {interval(split.cost, '')} against {interval(together.cost, '')} "
        "per million tokens."
    )
    word = word_for(ratio)
    tones: dict[str, Tone] = {"split": "split", "do not split": "stay"}
    return f"{word.capitalize()}: {what}", tones.get(word, "open")


def advice(weighed: Sequence[Weighed]) -> tuple[str, list[str]]:
    """The verdict in a word, and the candidates that it names: one, or both in a tie, or none without an answer."""
    split, together = best_of(weighed)
    if split is None or together is None:
        return "unknown", []
    word = word_for(ratios([split.found, together.found], together.name)[split.name])
    named = {"split": [split.name], "do not split": [together.name], "tie": [split.name, together.name]}
    return word, named.get(word, [])


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("plan", __doc__ or ""), ["plan"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
