"""What a ``tune_colocated`` run tried: every candidate's figures by round, and the final round against the start.

python -m analysis.tune_colocated runs/tune_colocated/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from analysis import command
from analysis.format import NONE, interval, interval_note, number
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import MUTED, SERIES, seconds_axis
from analysis.tables import config_columns
from xpyd.economics.verdict import Interval

MEASURES = {"goodput_rps": "1/s", "attainment": "share", "itl_p99_s": "s", "ttft_p99_s": "s", "e2e_mean_s": "s"}
SHOWN = ("goodput_rps", "itl_p99_s", "ttft_p99_s", "e2e_mean_s")


@dataclass(frozen=True)
class Tried:
    """One candidate in one round. ``changes``: its measures less the start's, paired by repeat."""

    round: int
    final: bool
    name: str
    start: bool
    num_blocks: int
    means: dict[str, float]
    changes: dict[str, Interval]
    went_on: bool


def analyse(run: Run) -> Results:
    """Raises RunError where no block has ended."""
    rows = run.tables["tune_colocated"]
    if rows.empty:
        raise RunError(f"{run.paths[0]}: no candidate has played a block; let the run go on, or measure again")
    found = tried(rows)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=_answer(found, kept(run)),
        because=f"Objective: {', then '.join(run.config['search']['objective'])}; made for {_ranks(run)}.",
        tables=[table(run, found)],
        frame=tidy(run, found),
        plots=[
            Plot(
                "Gaps and first tokens of every candidate",
                "Means over the blocks of each candidate's last round. Down and left is better; the start is marked.",
                lambda figure: draw(figure, found),
            )
        ],
    )


def tried(rows: pd.DataFrame) -> list[Tried]:
    """Every candidate of every round, in the order of the search; in a round the start comes first."""
    found = []
    for number_, part in rows.groupby("round", sort=True):
        later = set(rows.loc[rows["round"] == int(str(number_)) + 1, "candidate"])
        start = part[part["start"]].set_index("repeat")
        for name, own in part.groupby("candidate", sort=False):
            own = own.set_index("repeat")
            changes = {each: bootstrap_mean((own[each] - start[each]).dropna()) for each in MEASURES}
            means = {each: float(own[each].mean()) for each in MEASURES}
            final, is_start = bool(own["final"].iloc[0]), bool(own["start"].iloc[0])
            found.append(
                Tried(int(str(number_)), final, str(name), is_start, len(own), means, changes, str(name) in later)
            )
    return sorted(found, key=lambda each: (each.round, not each.start))


def table(run: Run, found: Sequence[Tried]) -> Table:
    rows = []
    for each in found:
        state = "start" if each.start else "went on" if each.went_on else ""
        figures = (number(each.means[name], MEASURES[name]) for name in SHOWN)
        change = NONE if each.start else interval(each.changes["itl_p99_s"], "s")
        stage = "final" if each.final else str(each.round + 1)
        rows.append((stage, each.name, *figures, change, str(each.num_blocks), state))
    columns = ("round", "candidate", "goodput", "itl p99", "ttft p99", "e2e mean")
    notes = [
        "Candidate: policy, tokens a step x sequences. Means over blocks; every repeat plays the same requests through "
        "all candidates of its round.",
        "itl p99 - start: paired by repeat. " + interval_note(found[-1].num_blocks, "blocks"),
    ]
    title = titled("Settings of the colocated rival tried, measured", run.labels)
    return Table(title, (*columns, "itl p99 - start", "blocks", ""), rows, notes, num_left=2)


def tidy(run: Run, found: Sequence[Tried]) -> pd.DataFrame:
    rows = [
        {
            "round": each.round,
            "final": each.final,
            "candidate": each.name,
            "start": each.start,
            "num_blocks": each.num_blocks,
            **each.means,
            **{f"{name} - start": change.mid for name, change in each.changes.items()},
            **{f"{name} - start low": change.low for name, change in each.changes.items()},
            **{f"{name} - start high": change.high for name, change in each.changes.items()},
        }
        for each in found
    ]
    return pd.DataFrame(rows).assign(**config_columns(run))


def draw(figure: Figure, found: Sequence[Tried]) -> None:
    axes = figure.add_subplot()
    for each in {each.name: each for each in found}.values():
        x, y = each.means["ttft_p99_s"], each.means["itl_p99_s"]
        if np.isnan([x, y]).any():
            continue
        axes.plot(x, y, "D" if each.start else "o", color=SERIES[0] if each.final else MUTED)
        axes.annotate(each.name, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.set(xlabel="TTFT p99", ylabel="ITL p99")
    seconds_axis(axes, "x")
    seconds_axis(axes)


def kept(run: Run) -> str:
    """The settings in the preset that the run wrote; empty where it wrote none."""
    path = run.paths[0] / "rival" / "tuned.yaml"
    if not path.exists():
        return ""
    settings = yaml.safe_load(path.read_text())["scheduler"]
    return f"{settings['policy']} {settings['max_num_batched_tokens']} x {settings['max_num_seqs']}"


def _answer(found: Sequence[Tried], preset: str) -> str:
    final = {each.start: each for each in found if each.final}
    if len(final) < 2 or not preset:
        return "The search did not end: no preset."
    best, start = final[False], final[True]
    changes = ", ".join(
        f"{name.removesuffix('_s')} {interval(best.changes[name], MEASURES[name])}"
        for name in ("goodput_rps", "itl_p99_s", "ttft_p99_s")
    )
    verdict = (
        f"The tuned rival is {best.name}" if preset == best.name else f"The start stays: {best.name} was no better"
    )
    return f"{verdict}. {best.name} against {start.name}: {changes}."


def _ranks(run: Run) -> str:
    columns = config_columns(run)
    return f"{columns['model']} on the ranks of {columns['placement']}, all colocated"


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("tune_colocated", __doc__ or ""), ["tune_colocated"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
