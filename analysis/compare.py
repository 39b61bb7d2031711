"""The comparison table: what splitting costs and saves, measured and modeled, with a verdict per length class.

python -m analysis.compare runs/compare/20260101-120000-000000
python -m analysis.compare runs/compare/* --allow-mixed --format latex --out ledger.tex
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd

from analysis import command
from analysis.compare_plots import comparison_plots
from analysis.compare_tables import (
    invariance_table,
    ledger_table,
    metric_table,
    tidy_lines,
    verdict_table,
)
from analysis.format import interval, sentence
from analysis.guesses import guessing_tables
from analysis.hybrid import (
    decisions_table,
    hybrid_plot,
    hybrid_runs_table,
    hybrid_table,
    reckoning_table,
    three_arms_table,
)
from analysis.invariance import check_invariance
from analysis.ledger import OVERALL, ClassVerdict, Comparison
from analysis.load import Run, differences
from analysis.results import Results, Table, Tone
from analysis.rivals import rivals_table
from analysis.tables import checks_table, config_columns, request_table, traffic_table
from xpyd.economics.verdict import Answer
from xpyd.records import COLOCATED, DISAGGREGATED, HYBRID, NULL

MAX_CONFIG_COLUMNS = 4
TONES: dict[Answer, Tone] = {Answer.SPLIT: "split", Answer.UNDECIDED: "open"}


def analyse(run: Run, by_class: bool = False) -> Results:
    """Everything that a comparison says; ``by_class`` puts every length class's ledger among the main tables."""
    comparison = Comparison(run)
    overall = comparison.verdicts[0]
    arms = [*comparison.rivals[1:], *(arm for arm in (DISAGGREGATED, HYBRID, NULL) if comparison.pairs[arm])]
    invariance = [check_invariance(run, comparison.requests, comparison.tokens, COLOCATED, arm) for arm in arms]
    hybrid = bool(comparison.pairs[HYBRID])
    per_class = [make(comparison, n) for n in comparison.lengths[1:] for make in (ledger_table, metric_table)]
    tables = [
        verdict_table(comparison),
        ledger_table(comparison, OVERALL),
        rivals_table(comparison),
        *([hybrid_table(comparison), three_arms_table(comparison), reckoning_table(comparison)] if hybrid else []),
        metric_table(comparison, OVERALL),
        *guessing_tables(run),
        *(per_class if by_class else []),
        traffic_table(run),
        invariance_table(run, invariance),
        checks_table(run, comparison.requests),
    ]
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"Verdict over all lengths: {_headline(overall)}.",
        because=f"{sentence(overall.verdict.because)} {overall.pools_note}".strip(),
        tables=tables,
        frame=tidy_lines(comparison),
        plots=[*comparison_plots(comparison), *([hybrid_plot(comparison)] if hybrid else [])],
        details=[
            *([] if by_class else per_class),
            *([decisions_table(comparison)] if hybrid else []),
            request_table(comparison.requests, run.labels),
        ],
        tone="open" if overall.pools_note else TONES.get(overall.verdict.answer, "stay"),
    )


def _headline(overall: ClassVerdict) -> str:
    """The answer in one line; never a bare "split" where the end-to-end time of this ratio says the opposite."""
    answer = overall.verdict.answer
    if answer is Answer.SPLIT and overall.pools_note:
        return f"{answer.value}, but not at this ratio: end to end it loses"
    return answer.value


def overview(runs: Sequence[Run], results: Sequence[Results]) -> Results:
    """Runs that differ, one row each: the settings in which they do, and what came out."""
    keys = list(dict.fromkeys(key for run in runs[1:] for key in differences(runs[0], run)))[:MAX_CONFIG_COLUMNS]
    rows = []
    comparisons = [Comparison(run) for run in runs]
    for run, comparison in zip(runs, comparisons, strict=True):
        found = comparison.verdicts[0]
        settings = (_setting(run, key) for key in keys)
        cells = (interval(found.lines[name].measured, "s") for name in ("bill_s", "win_s", "net_s"))
        rows.append((run.name, *settings, found.verdict.answer.value, *cells))
    columns = ("run", *keys, "split?", "bill", "win", "net")
    table = Table("Runs side by side, all lengths, measured", columns, rows, num_left=len(keys) + 2)
    hybrid = [each for each in comparisons if each.pairs[HYBRID]]
    tables = [table, *([hybrid_runs_table(hybrid)] if hybrid else [])]
    frame = pd.DataFrame([config_columns(run) for run in runs])
    return Results("overview", "compare", f"{len(runs)} configurations.", "One row each above.", tables, frame)


def main(argv: Sequence[str] | None = None) -> int:
    made = command.parser("compare", __doc__ or "")
    made.add_argument("--by-class", action="store_true", help="also the ledger and metrics of every length class")

    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run, options.by_class)

    return command.main(made, ["compare", "simulate"], run_analysis, overview, argv)


def _setting(run: Run, key: str) -> str:
    """A config key or environment fact by its dotted name, as ``differences`` names them."""
    if key.startswith("environment."):
        return str(run.environment.get(key.removeprefix("environment."), ""))
    found: object = run.config
    for part in key.split("."):
        found = found.get(part, "") if isinstance(found, dict) else ""
    if isinstance(found, list) and all(isinstance(each, dict) and "name" in each for each in found):
        return ", ".join(str(each["name"]) for each in found)  # request classes: all of one would fill the page
    return str(found)


if __name__ == "__main__":
    sys.exit(main())
