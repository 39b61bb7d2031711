"""Speculative decoding in both arms, beside both without: what it brings, and what it does to the two ledgers.

python -m analysis.speculation runs/speculation/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.compare_tables import LINE_NAMES, SECONDS, invariance_table
from analysis.format import interval, interval_note, number, sentence
from analysis.guesses import PLAIN_OF, Guessing, draft_name, guessing_by_arm, guessing_table
from analysis.intervals import bootstrap_mean
from analysis.invariance import check_invariance
from analysis.ledger import BREAKEVEN, LEDGER_LINES, NOTHING, OVERALL, Comparison, complete_pairs
from analysis.load import Run, RunError
from analysis.plots import draw_whiskers
from analysis.results import Plot, Results, Table, titled
from analysis.style import ARM_COLOURS, COST, GAIN, MUTED, seconds_axis
from analysis.tables import checks_table, config_columns, traffic_table
from xpyd.economics.verdict import Interval
from xpyd.records import COLOCATED, DISAGGREGATED, NULL

PLAIN_ARMS = (COLOCATED, DISAGGREGATED)
SHOWN = {
    "tpot_s mean": "s",
    "itl_s p50": "s",
    "itl_s p99": "s",
    "ttft_s p50": "s",
    "decode_s": "s",
    "e2e_s mean": "s",
    "attainment": "share",
    "goodput_rps": "1/s",
}


@dataclass(frozen=True)
class Change:
    """One quantity of one arm without guesses and with; ``change`` is with - without, over block pairs."""

    arm: str
    quantity: str
    unit: str
    without: float
    with_guesses: float
    change: Interval


class Speculation:
    """One run as two comparisons of the same pairs. Raises RunError without a pair that ended in all four arms."""

    def __init__(self, run: Run) -> None:
        pairs = complete_pairs(run, [*PLAIN_OF.values(), *PLAIN_OF])
        if not pairs:
            raise RunError(f"{run.paths[0]}: no block pair has ended in all four arms; let the run go on")
        self.run = _only_pairs(run, pairs)
        self.both = Comparison(self.run)
        self.without = Comparison(_only_arms(self.run, {arm: arm for arm in (*PLAIN_ARMS, NULL)}))
        self.with_guesses = Comparison(_only_arms(self.run, PLAIN_OF))
        self.num_pairs = len(pairs)

    @cached_property
    def guessing(self) -> list[Guessing]:
        return guessing_by_arm(self.run)

    @cached_property
    def changes(self) -> list[Change]:
        """Every shown quantity of both arms; the same requests, arm by arm."""
        found = []
        for arm, plain in PLAIN_OF.items():
            sides = self.both.sides_of(OVERALL, plain, arm)
            for quantity, unit in SHOWN.items():
                found.append(_change(plain, quantity, unit, sides.colocated[quantity], sides.other[quantity]))
        return found

    @cached_property
    def ledgers(self) -> list[Change]:
        """Every line of splitting's ledger, and the tokens after which it has paid for itself."""
        sides = [comparison.sides(OVERALL) for comparison in (self.without, self.with_guesses)]
        before, after = (each.ledgers() for each in sides)
        found = [_change("", name, "s", before[name], after[name]) for name in LEDGER_LINES]
        tokens = [each.breakeven_output_tokens() for each in sides]
        return [*found, Change("", BREAKEVEN, "tokens", tokens[0], tokens[1], NOTHING)]

    def change(self, arm: str, quantity: str) -> Change:
        return next(each for each in self.changes if (each.arm, each.quantity) == (arm, quantity))


def _change(arm: str, quantity: str, unit: str, without: pd.Series[float], with_guesses: pd.Series[float]) -> Change:
    """From both sides' values by pair."""
    means = float(without.mean()), float(with_guesses.mean())
    return Change(arm, quantity, unit, *means, bootstrap_mean(with_guesses - without))


def _only_pairs(run: Run, pairs: Sequence[int]) -> Run:
    blocks = run.tables["blocks"]
    return replace(run, tables={**run.tables, "blocks": blocks[blocks["pair"].isin(pairs)].reset_index(drop=True)})


def _only_arms(run: Run, names: Mapping[str, str]) -> Run:
    """The blocks and requests of these arms, under other names."""
    tables = dict(run.tables)
    for table in ("blocks", "requests"):
        own = tables[table][tables[table]["arm"].isin(names)]
        tables[table] = own.assign(arm=own["arm"].map(names)).reset_index(drop=True)
    return replace(run, tables=tables)


def analyse(run: Run) -> Results:
    found = Speculation(run)
    both, arms = found.both, [*PLAIN_OF, DISAGGREGATED]
    invariance = [check_invariance(found.run, both.requests, both.tokens, COLOCATED, arm) for arm in arms]
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=_answer(found),
        because=sentence(_because(found)),
        tables=[
            guessing_table(found.run, found.guessing),
            change_table(found),
            ledger_table(found),
            traffic_table(found.run),
            invariance_table(found.run, invariance),
            checks_table(found.run, both.requests),
        ],
        frame=tidy(found),
        plots=[
            Plot(
                "Bill and win, without guesses and with",
                "Seconds per request that splitting costs and saves, over all lengths, with 95 % intervals.",
                lambda figure: draw_ledgers(figure, found),
            ),
            Plot(
                "Time per output token, pair by pair",
                "Each line is one block pair on the same requests: left without guesses, right with.",
                lambda figure: draw_pairs(figure, found),
            ),
        ],
    )


def _answer(found: Speculation) -> str:
    split = next(each for each in found.guessing if PLAIN_OF[each.arm] == DISAGGREGATED)
    changes = [found.change(arm, "tpot_s mean") for arm in PLAIN_ARMS]
    told = " and ".join(f"{each.change.mid / each.without:+.0%} {each.arm}" for each in changes)
    accepted = number(split.acceptance, "share")
    return f"Of the guesses ({draft_name(found.run)}) {accepted} came true; time per output token {told}."


def _because(found: Speculation) -> str:
    lines = {each.quantity: each for each in found.ledgers}
    told = [
        f"{name} {number(lines[key].without, lines[key].unit)} without, "
        f"{number(lines[key].with_guesses, lines[key].unit)} with"
        for name, key in (("win", "win_s"), ("bill", "bill_s"), ("break-even output tokens", BREAKEVEN))
    ]
    return "of splitting: " + "; ".join(told)


def change_table(found: Speculation) -> Table:
    rows = [
        (
            each.arm,
            each.quantity,
            number(each.without, each.unit),
            number(each.with_guesses, each.unit),
            interval(each.change, each.unit),
        )
        for each in found.changes
    ]
    notes = [
        "Means over block pairs. tpot_s counts every token; itl_s the waits between what reaches the client, where the "
        "tokens of one step come together.",
        interval_note(found.num_pairs),
    ]
    columns = ("arm", "metric", "without", "with guesses", "change")
    return Table(titled("What guessing changes, measured", found.run.labels), columns, rows, notes, num_left=2)


def ledger_table(found: Speculation) -> Table:
    rows = [
        (
            LINE_NAMES.get(each.quantity, "break-even output tokens"),
            number(each.without, each.unit),
            number(each.with_guesses, each.unit),
            interval(each.change, each.unit),
        )
        for each in found.ledgers
    ]
    answers = [comparison.verdicts[0].verdict.answer.value for comparison in (found.without, found.with_guesses)]
    rows.append(("split?", answers[0], answers[1], ""))
    notes = [f"{SECONDS} A verdict needs five pairs.", interval_note(found.num_pairs)]
    columns = ("line", "without", "with guesses", "change")
    return Table(titled("The ledger of splitting, measured", found.run.labels), columns, rows, notes)


def draw_ledgers(figure: Figure, found: Speculation) -> None:
    axes = figure.add_subplot()
    comparisons = {"without": found.without, "with guesses": found.with_guesses}
    places = np.arange(len(comparisons))
    for offset, name, colour in ((-0.19, "bill_s", COST), (0.19, "win_s", GAIN)):
        lines = [each.line(OVERALL, name).measured for each in comparisons.values()]
        axes.bar(places + offset, [line.mid for line in lines], 0.36, color=colour, label=name.removesuffix("_s"))
        draw_whiskers(axes, places + offset, lines)
    axes.axhline(0, color=MUTED, linewidth=1)
    axes.set_xticks(places, list(comparisons))
    axes.set(ylabel="per request")
    axes.grid(axis="x", visible=False)
    seconds_axis(axes)
    axes.legend(loc="best")


def draw_pairs(figure: Figure, found: Speculation) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (arm, plain) in zip(panels, PLAIN_OF.items(), strict=True):
        sides = found.both.sides_of(OVERALL, plain, arm)
        for before, after in zip(sides.colocated["tpot_s mean"], sides.other["tpot_s mean"], strict=True):
            axes.plot([0, 1], [before, after], "o-", color=ARM_COLOURS[plain], alpha=0.6, markersize=5)
        axes.set_xticks([0, 1], ["without", "with guesses"])
        axes.set(title=plain, xlim=(-0.4, 1.4))
        axes.grid(axis="x", visible=False)
        seconds_axis(axes)
    panels[0].set_ylim(0, None)
    panels[0].set_ylabel("per output token")


def tidy(found: Speculation) -> pd.DataFrame:
    rows = [
        {
            "section": "ledger" if not each.arm else "metric",
            "arm": each.arm,
            "quantity": each.quantity,
            "unit": each.unit,
            "without": each.without,
            "with_guesses": each.with_guesses,
            "change": each.change.mid,
            "change_low": each.change.low,
            "change_high": each.change.high,
        }
        for each in [*found.changes, *found.ledgers]
    ]
    rates = [
        {"section": "guessing", "arm": PLAIN_OF[each.arm], "quantity": name, "unit": "", "with_guesses": value}
        for each in found.guessing
        for name, value in (("acceptance", each.acceptance), ("tokens_per_step", each.tokens_per_step))
    ]
    return pd.DataFrame([*rows, *rates]).assign(num_pairs=found.num_pairs, **config_columns(found.run))


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("speculation", __doc__ or ""), ["speculation"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
