"""One arm as it is: latency, goodput, bytes and requests of a ``serve`` run.

python -m analysis.serve runs/serve/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd

from analysis import command
from analysis.format import interval, interval_note, number
from analysis.guesses import guessing_tables
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.plots import draw_gaps, draw_ttft
from analysis.requests import STAGE_TIMES, request_frame
from analysis.results import Plot, Results, Table, titled
from analysis.statistics import ONLY_HAND_OFF, UNITS, block_statistics, num_workers
from analysis.tables import checks_table, config_columns, request_table, traffic_table
from analysis.tokens import Tokens, order_tokens
from xpyd.economics.verdict import Interval


def analyse(run: Run) -> Results:
    """Every figure is the mean over blocks. Raises RunError where no block has ended."""
    blocks, tokens = run.tables["blocks"], order_tokens(run)
    requests = request_frame(run, tokens)
    found = block_values(run, tokens, requests)
    offered = requests[requests["block"].isin(blocks["block"])]
    timed = offered[offered["status"] == "finished"]
    arm = str(blocks["arm"].iloc[0])
    frame = tidy_statistics(run, arm, found)
    last = int(blocks["block"].iloc[-1])
    attainment = number(float(found["attainment"].mean()), "share")
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"{arm.capitalize()}: {len(timed)} of {len(offered)} requests finished.",
        because=f"Attainment {attainment}. One arm alone has no verdict; experiments.compare gives one.",
        tables=[metric_table(run, frame), *guessing_tables(run), traffic_table(run), checks_table(run, requests)],
        frame=frame,
        plots=[
            Plot(
                "Time to first token",
                "Share of requests whose first token the client had within x. The dashed line is the limit.",
                lambda figure: draw_ttft(figure, requests, run.config["slo"]["ttft_s"]),
            ),
            Plot(
                f"Gaps between tokens over time, block {last}",
                "Each point is one gap, as the client saw it. Shaded: steps with prefill in them, on any rank.",
                lambda figure: draw_gaps(figure, run, tokens, {arm: last}),
            ),
        ],
        details=[request_table(requests, run.labels)],
    )


def block_values(run: Run, tokens: Tokens | None = None, requests: pd.DataFrame | None = None) -> pd.DataFrame:
    """The statistics of every block that ended, one row each; ``tokens`` and ``requests``: the run's own, where known.

    Raises RunError where no block has ended.
    """
    blocks = run.tables["blocks"]
    if blocks.empty:
        raise RunError(f"{run.paths[0]}: no block has ended; let the run go on, or measure again")
    tokens = tokens or order_tokens(run)
    requests = request_frame(run, tokens) if requests is None else requests
    offered = requests[requests["block"].isin(blocks["block"])]
    timed = offered[offered["status"] == "finished"]
    return block_statistics(offered, timed, tokens.gaps, blocks, run.config["slo"], num_workers(run))


def tidy_statistics(run: Run, arm: str, found: pd.DataFrame) -> pd.DataFrame:
    """One row per quantity, with its mean over blocks and interval."""
    units = {**dict.fromkeys(STAGE_TIMES, "s"), **UNITS}
    rows = []
    for name, unit in units.items():
        if arm == "colocated" and name in ONLY_HAND_OFF:
            continue
        mean = bootstrap_mean(found[name])
        figures = {"measured": mean.mid, "measured_low": mean.low, "measured_high": mean.high}
        what = {"arm": arm, "quantity": name, "unit": unit, "num_blocks": len(found)}
        rows.append({**config_columns(run), **what, **figures})
    return pd.DataFrame(rows)


def metric_table(run: Run, frame: pd.DataFrame) -> Table:
    rows = [
        (row["quantity"], interval(Interval(row["measured_low"], row["measured"], row["measured_high"]), row["unit"]))
        for row in frame.to_dict("records")
    ]
    slo = run.config["slo"]
    notes = [
        f"Means over blocks. Limits: ttft_s {number(slo['ttft_s'], 's')}, every gap {number(slo['itl_s'], 's')}.",
        interval_note(int(frame["num_blocks"].iloc[0]), "blocks"),
    ]
    return Table(
        titled("Latency and goodput, measured", run.labels), ("metric", str(frame["arm"].iloc[0])), rows, notes
    )


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("serve", __doc__ or ""), ["serve", "simulate"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
