"""Split or not, in which ratio, how wide, at what cost: what each way to use the ranks sustains, and where that turns.

python -m analysis.plan runs/plan/20260101-120000-000000
python -m analysis.plan runs/plan/20260101-120000-000000 --against runs/saturation/RUN...   # regret against real runs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import NONE, digits, interval, interval_note, number
from analysis.load import Run, RunError, load_run
from analysis.regret import answer as regret_answer
from analysis.regret import read_sweep, regret_of, regret_table
from analysis.results import Plot, Results, Table, Tone, titled
from analysis.saturation_curve import Point, Saturated, ratios, saturated
from analysis.style import ARM_COLOURS, MUTED, SERIES
from analysis.tables import config_columns
from xpyd.economics.prices import PriceConfig, cost_per_million
from xpyd.economics.verdict import Interval

AXES = {"link_gbps": ("link", "Gb/s"), "input_len": ("prompt", "tokens")}
MAX_SHOWN = 12  # candidates in the table; the CSV holds all


@dataclass(frozen=True)
class Weighed:
    """A candidate: what it sustains, and at the highest rate that held, its goodput and price."""

    name: str
    splits: bool
    found: Saturated
    goodput_rps: float
    cost: float  # of a million output tokens within the limits


@dataclass(frozen=True)
class Turn:
    """One value of an axis: what the best split sustains there, over what the best colocated way does."""

    axis: str
    value: float
    ratio: Interval


def analyse(run: Run, against: Sequence[Run] = ()) -> Results:
    """``against``: saturation runs that really played the ways. Raises RunError where there is nothing to tell."""
    rows = run.tables["plan"]
    if rows.empty:
        raise RunError(f"{run.paths[0]}: no candidate was played; let the run go on, or start it anew")
    weighed = weigh(run, rows[rows["axis"] == ""])
    turns = where_it_turns(run, rows)
    best = {splits: next((each for each in weighed if each.splits == splits), None) for splits in (False, True)}
    verdict, tone = _verdict(best[True], best[False])
    tables = [candidate_table(run, weighed), *([turn_table(run, turns)] if turns else [])]
    because = ["Modeled, every figure.", *(_turning(axis, turns) for axis in AXES if _of(turns, axis))]
    if against:
        sweep = read_sweep(run, against)
        regret = regret_of(_advised(best[True], best[False]), sweep)
        tables.append(regret_table(run, [each.found for each in weighed], sweep, regret))
        because = [regret_answer(regret), *because]
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
                    lambda figure, axis=axis: draw_turns(figure, axis, _of(turns, axis)),  # type: ignore[misc]
                )
                for axis in AXES
                if _of(turns, axis)
            ),
        ],
        tone=tone,
    )


def weigh(run: Run, rows: pd.DataFrame) -> list[Weighed]:
    """Every candidate, the one that sustains most first; of equals the cheaper."""
    prices = PriceConfig(**run.config["prices"])
    found = {each.arm: each for each in saturated(_points(rows), float(run.config["search"]["attainment"]))}
    weighed = []
    for name, own in rows.groupby("candidate", sort=False):
        first = own.iloc[0]
        held = own[own["rate_rps"] == found[str(name)].bracket[0]]
        ranks = [int(first[f"num_{role}"] * first[f"{role}_tp"]) for role in ("prefill", "decode", "colocated")]
        tokens_per_s = float(held["good_tokens_per_s"].mean()) if len(held) else 0.0
        weighed.append(
            Weighed(
                name=str(name),
                splits=bool(first["num_colocated"] == 0),
                found=found[str(name)],
                goodput_rps=float(held["goodput_rps"].mean()) if len(held) else 0.0,
                cost=cost_per_million(prices.per_hour(*ranks), tokens_per_s),
            )
        )
    return sorted(weighed, key=lambda each: (-np.nan_to_num(each.found.rate.mid), each.cost))


def where_it_turns(run: Run, rows: pd.DataFrame) -> list[Turn]:
    """The ratio of the two best ways at every value of every axis."""
    turns = []
    for (axis, value), own in rows[rows["axis"] != ""].groupby(["axis", "value"], sort=True):
        kinds = own.assign(candidate=np.where(own["num_colocated"] == 0, "split", "colocated"))
        found = saturated(_points(kinds), float(run.config["search"]["attainment"]))
        if {each.arm for each in found} == {"split", "colocated"}:
            turns.append(Turn(str(axis), float(str(value)), ratios(found, "colocated")["split"]))
    return turns


def candidate_table(run: Run, weighed: Sequence[Weighed]) -> Table:
    base = next((each for each in weighed if not each.splits), None)
    against = ratios([each.found for each in weighed], base.name) if base is not None else {}
    currency = run.config["prices"]["currency"]
    rows = [
        (
            each.name,
            interval(each.found.rate, "1/s"),
            NONE if base is None or each is base else interval(against[each.name], ""),
            number(each.goodput_rps, "1/s"),
            digits(each.cost) if np.isfinite(each.cost) else NONE,
        )
        for each in weighed[:MAX_SHOWN]
    ]
    columns = ("way", "sustains", "over best colocated", "goodput there", f"{currency} per million tokens")
    target = number(float(run.config["search"]["attainment"]), "share")
    notes = [
        f"Sustains: the rate at which attainment falls below {target}; goodput and cost at the highest rate played "
        "that held. Prices are the configuration's.",
        interval_note(int(run.config["search"]["num_repeats"]), "repeats"),
        "Not weighed: codecs, hybrid routing, pipeline and context parallel instances.",
    ]
    if len(weighed) > MAX_SHOWN:
        notes.append(f"The best {MAX_SHOWN} of {len(weighed)}; --format csv has all.")
    return Table(titled("Ways to use the ranks, measured", run.labels), columns, rows, notes)


def turn_table(run: Run, turns: Sequence[Turn]) -> Table:
    rows = [
        (AXES[turn.axis][0], f"{digits(turn.value)} {AXES[turn.axis][1]}", interval(turn.ratio, ""), _word(turn.ratio))
        for turn in turns
    ]
    notes = ["The two best ways of the question itself, played anew; an interval over 1 is a tie."]
    columns = ("varied", "value", "best split over best colocated", "")
    return Table(titled("Where the answer turns, measured", run.labels), columns, rows, notes, num_left=2)


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


def draw_turns(figure: Figure, axis: str, turns: Sequence[Turn]) -> None:
    axes = figure.add_subplot()
    mids = np.array([turn.ratio.mid for turn in turns])
    spread = np.nan_to_num([[t.ratio.mid - t.ratio.low for t in turns], [t.ratio.high - t.ratio.mid for t in turns]])
    axes.errorbar([turn.value for turn in turns], mids, np.maximum(spread, 0), fmt="o-", color=SERIES[0])
    axes.axhline(1, ls="--", color=MUTED, lw=1)
    axes.set(xscale="log", xlabel=" in ".join(AXES[axis]), ylabel="split over colocated", ylim=(0, None))


def _points(rows: pd.DataFrame) -> list[Point]:
    return [
        Point(str(name), float(str(rate)), own.set_index("repeat")[["attainment"]])
        for (name, rate), own in rows.groupby(["candidate", "rate_rps"], sort=True)
    ]


def _of(turns: Sequence[Turn], axis: str) -> list[Turn]:
    return [turn for turn in turns if turn.axis == axis]


def _word(ratio: Interval) -> str:
    if np.isnan(ratio.mid):
        return "unknown"
    if ratio.known and ratio.low <= 1 <= ratio.high:
        return "tie"
    return "split" if ratio.mid > 1 else "do not split"


def _verdict(split: Weighed | None, together: Weighed | None) -> tuple[str, Tone]:
    if split is None or together is None:
        return "Only one kind of candidate was played; no answer.", "open"
    if np.isnan(split.found.rate.mid) or np.isnan(together.found.rate.mid):
        shown = ", ".join(each.name for each in (split, together) if np.isnan(each.found.rate.mid))
        return f"No answer: {shown} never gave way, or never held; raise search.max_rps or loosen slo.", "open"
    ratio = ratios([split.found, together.found], together.name)[split.name]
    what = (
        f"{split.name} sustains {interval(split.found.rate, '1/s')}, {interval(ratio, '')} times {together.name} "
        f"({interval(together.found.rate, '1/s')}); {digits(split.cost)} against {digits(together.cost)} per million "
        "tokens."
    )
    word = _word(ratio)
    tones: dict[str, Tone] = {"split": "split", "do not split": "stay"}
    return f"{word.capitalize()}: {what}", tones.get(word, "open")


def _advised(split: Weighed | None, together: Weighed | None) -> list[str]:
    """The ways that the verdict names: one, or both in a tie. Raises RunError where there is no answer."""
    known = [each for each in (split, together) if each is not None and not np.isnan(each.found.rate.mid)]
    if split is None or together is None or len(known) < 2:
        raise RunError("the plan has no answer that real runs could be held against; see what its page says")
    word = _word(ratios([split.found, together.found], together.name)[split.name])
    return {"split": [split.name], "do not split": [together.name]}.get(word, [split.name, together.name])


def _turning(axis: str, turns: Sequence[Turn]) -> str:
    """Between which values of an axis the answer turns."""
    own = _of(turns, axis)
    name, unit = AXES[axis]
    words = [_word(turn.ratio) for turn in own]
    changes = [
        f"between {digits(a.value)} and {digits(b.value)} {unit} from {_word(a.ratio)} to {_word(b.ratio)}"
        for a, b in pairwise(own)
        if _word(a.ratio) != _word(b.ratio)
    ]
    if not changes:
        return f"Over the {name} values tried the answer stays: {words[0]}."
    return f"By {name} it turns {', and '.join(changes)}."


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        sweep = [load_run(path, options.allow_partial) for path in options.against]
        return analyse(run, sweep)

    made = command.parser("plan", __doc__ or "")
    made.add_argument(
        "--against", nargs="+", type=Path, default=[], metavar="RUN", help="saturation runs that really played the ways"
    )
    return command.main(made, ["plan"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
