"""A simulated run: its sums, and where it has all rows the tables of compare or serve, named as what they are.

python -m analysis.simulate runs/simulate/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis import command, compare, serve
from analysis.format import number
from analysis.load import Run, RunError
from analysis.results import Results, Table, titled
from analysis.tables import config_columns

FILE = "simulated.json"
COUNTS = ("num_requests", "num_finished", "num_failed", "num_retries", "num_preempted")
FIGURES = {
    "goodput_rps": "1/s",
    "attainment": "share",
    "ttft_p50_s": "s",
    "ttft_p99_s": "s",
    "itl_p50_s": "s",
    "itl_p99_s": "s",
    "e2e_p50_s": "s",
    "e2e_p99_s": "s",
    "transfer_p50_s": "s",
    "exposed_p50_s": "s",
}


def analyse(run: Run) -> Results:
    """Raises RunError where the run has no sums."""
    blocks = read_blocks(run)
    frame = pd.DataFrame([{**config_columns(run), **block, "source": "modeled"} for block in blocks])
    tables = [sums_table(run, frame)]
    if run.config["simulate"]["rows"] != "all":
        return Results(
            name=run.name,
            experiment=run.experiment,
            answer=f"Modeled: {frame['num_finished'].sum()} of {frame['num_requests'].sum()} requests finished.",
            because="Sums alone: simulate.rows=all keeps the rows that a comparison needs.",
            tables=tables,
            frame=frame,
        )
    whole = compare.analyse(run) if run.config["simulate"]["arms"] == "compare" else serve.analyse(run)
    # Tokens and checksums of a simulation prove nothing: every token is 0, and no byte has moved.
    kept = [table for table in whole.tables if not table.title.startswith(("Output invariance", "Bytes moved"))]
    return replace(
        whole,
        answer=f"Modeled. {whole.answer}",
        tables=[*tables, *kept],
        frame=whole.frame.assign(source="modeled"),
    )


def read_blocks(run: Run) -> list[dict[str, Any]]:
    """The sums of every block, of pooled runs one after the other."""
    found: list[dict[str, Any]] = []
    for path in run.paths:
        if not (path / FILE).exists():
            raise RunError(f"{path}: holds no {FILE}; it did not end, simulate again")
        found += json.loads((path / FILE).read_text())["blocks"]
    return found


def sums_table(run: Run, frame: pd.DataFrame) -> Table:
    """One column per arm: counts over all blocks, figures as means over blocks."""
    arms = list(dict.fromkeys(frame["arm"]))
    by_arm = [frame[frame["arm"] == arm] for arm in arms]
    rows = [(name, *(str(int(blocks[name].sum())) for blocks in by_arm)) for name in COUNTS]
    rows += [(name, *(number(float(blocks[name].mean()), unit) for blocks in by_arm)) for name, unit in FIGURES.items()]
    notes = [
        "Figures are means over blocks, quantiles to one per cent.",
        f"Simulated {frame['lasted_s'].sum():.1f} s in {frame['wall_s'].sum():.2f} s.",
    ]
    return Table(titled("Simulated blocks", run.labels), ("", *arms), rows, notes)


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("simulate", __doc__ or ""), ["simulate"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
