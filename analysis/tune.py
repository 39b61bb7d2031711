"""What a ``tune`` run tried: every candidate with its ratio to the best before it, and what the preset gained at last.

python -m analysis.tune runs/tune/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import NONE, digits, interval, interval_note, sentence
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import MUTED, SERIES
from analysis.tables import config_columns
from xpyd.economics.verdict import Interval
from xpyd.units import GIGA, format_bytes

FINAL, START, TUNED = "final", "start", "tuned"


@dataclass(frozen=True)
class Candidate:
    """One set of UCX options in one round. ``ratio``: how many times as fast as the round's reference."""

    round: int
    axis: str
    name: str
    reference: bool
    settings: dict[str, str]
    rates: dict[int, float]  # median bytes per second by piece size
    ratio: Interval
    adopted: bool
    refused: str


def analyse(run: Run) -> Results:
    """Raises RunError where no candidate was timed."""
    rows = run.tables["tune"]
    if rows[rows["refused"] == ""].empty:
        raise RunError(f"{run.paths[0]}: no candidate was timed; let the run go on, or measure again")
    found = candidates(rows)
    last = {each.name: each for each in found if each.axis == FINAL}
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=_answer(run, last),
        because=sentence(_because(found)),
        tables=[table(run, found)],
        frame=tidy(run, found),
        plots=[
            Plot(
                "Candidates against the best before them",
                "How many times as fast, geometric mean over repeats; whiskers: 95 % interval. Each round starts from "
                "what won before it.",
                lambda figure: draw(figure, found),
                height_in=max(2.4, 0.22 * len(found)),
            )
        ],
    )


def candidates(rows: pd.DataFrame) -> list[Candidate]:
    """Every candidate, in the order of the search. It was adopted where the next round starts from its settings."""
    begins = {int(row["round"]): str(row["settings"]) for row in rows[rows["reference"]].to_dict("records")}
    final = rows[(rows["axis"] == FINAL) & (rows["candidate"] == TUNED)].to_dict("records")
    if final:  # the final round starts from the begin: what it calls tuned came out of the search
        begins[int(final[0]["round"])] = str(final[0]["settings"])
    found = []
    for _, part in rows.groupby(["round", "candidate"], sort=False):
        first = part.to_dict("records")[0]
        number, name = int(first["round"]), str(first["candidate"])
        timed = part[part["refused"] == ""]
        reference = rows[(rows["round"] == number) & rows["reference"]]
        moved_on = begins.get(number + 1) == first["settings"] and not first["reference"]
        found.append(
            Candidate(
                round=number,
                axis=str(first["axis"]),
                name=name,
                reference=bool(first["reference"]),
                settings=json.loads(first["settings"]),
                rates=dict((timed["payload_bytes"] / timed["seconds"]).groupby(timed["piece_bytes"]).median()),
                ratio=_geometric(bootstrap_mean(log_ratios(timed, reference))),
                adopted=bool(moved_on and first["axis"] != FINAL),
                refused=str(first["refused"]),
            )
        )
    return sorted(found, key=lambda each: (each.round, not each.reference))


def log_ratios(timed: pd.DataFrame, reference: pd.DataFrame) -> pd.Series:
    """Logarithm of how many times as fast as the reference, by repeat, mean over piece sizes.

    In logarithms, as the mean of plain ratios lies above 1 also where nothing but noise differs.
    """
    keys = ["repeat", "piece_bytes"]
    faster = (reference.set_index(keys)["seconds"] / timed.set_index(keys)["seconds"]).dropna()
    logarithms = pd.Series(np.log(faster.to_numpy()), index=faster.index)
    return logarithms.groupby("repeat").mean()


def _geometric(found: Interval) -> Interval:
    return Interval(float(np.exp(found.low)), float(np.exp(found.mid)), float(np.exp(found.high)))


def table(run: Run, found: Sequence[Candidate]) -> Table:
    sizes = sorted({size for each in found for size in each.rates})
    rows = []
    for each in found:
        rates = (digits(each.rates[size] / GIGA) if size in each.rates else NONE for size in sizes)
        ratio = "1" if each.reference else NONE if each.refused else interval(each.ratio, "")
        state = "adopted" if each.adopted else "refused" if each.refused else ""
        rows.append((each.axis, each.name, *rates, ratio, state))
    columns = ("axis", "candidate", *(f"{format_bytes(size)} GB/s" for size in sizes), "times as fast", "")
    repeats = min(part["repeat"].nunique() for _, part in run.tables["tune"].query("refused == ''").groupby("round"))
    notes = [
        "GB/s: medians, in pieces of each size. Times as fast: against the first line of the round.",
        interval_note(repeats, "repeats"),
        *(f"{each.axis}={each.name} was refused: {each.refused}" for each in found if each.refused),
    ]
    return Table(titled("UCX options tried, measured", run.labels), columns, rows, notes, num_left=2)


def tidy(run: Run, found: Sequence[Candidate]) -> pd.DataFrame:
    rows = [
        {
            "round": each.round,
            "axis": each.axis,
            "candidate": each.name,
            "settings": json.dumps(each.settings, sort_keys=True),
            "piece_bytes": size,
            "bytes_per_s": rate,
            "ratio": 1.0 if each.reference else each.ratio.mid,
            "ratio_low": each.ratio.low,
            "ratio_high": each.ratio.high,
            "adopted": each.adopted,
        }
        for each in found
        for size, rate in each.rates.items()
    ]
    return pd.DataFrame(rows).assign(**config_columns(run))


def draw(figure: Figure, found: Sequence[Candidate]) -> None:
    shown = [each for each in found if not each.reference and not each.refused]
    axes = figure.add_subplot()
    for y, each in enumerate(reversed(shown)):
        colour = SERIES[0] if each.adopted or each.name == TUNED else MUTED
        axes.plot(each.ratio.mid, y, "o", color=colour)
        if each.ratio.known:
            axes.plot([each.ratio.low, each.ratio.high], [y, y], color=colour)
    axes.axvline(1, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(shown)), [f"{each.axis}: {each.name}" for each in reversed(shown)], fontsize=8)
    axes.set_xlabel("times as fast")


def _answer(run: Run, last: dict[str, Candidate]) -> str:
    if TUNED not in last:
        return "The search did not end: no preset."
    fabric = run.config["fabric"]["name"]
    gain = last[TUNED].ratio
    verdict = "The" if gain.known and gain.low > 1 else "No clear gain: the"
    return f"{verdict} tuned settings are {interval(gain, '')} times as fast as fabric={fabric}."


def _because(found: Sequence[Candidate]) -> str:
    won = ", ".join(f"{each.axis}={each.name} ({digits(each.ratio.mid)})" for each in found if each.adopted)
    return f"adopted one after the other: {won}" if won else "no option beat the settings that the search began with"


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("tune", __doc__ or ""), ["tune"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
