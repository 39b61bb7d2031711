"""Contention: the bill isolated and under load, and what receiving a KV cache costs the decode step beside it.

python -m analysis.contention runs/contention/20260101-120000-000000
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
from analysis.format import NONE, interval, interval_note, number, sentence
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import COST, MUTED, seconds_axis
from analysis.tables import config_columns
from xpyd import metrics
from xpyd.economics.verdict import Interval
from xpyd.units import format_bytes

LOAD = ["payload_bytes", "num_decode_seqs", "prefill_tokens"]


@dataclass(frozen=True)
class Contended:
    """One payload beside one load, over all repeats. Gaps are NaN where nothing decoded."""

    payload_bytes: int
    num_decode_seqs: int
    prefill_tokens: int  # of the source's steps; 0: it only sends
    bill_s: float  # median
    bill_ratio: float  # to the same payload with both ends idle
    gap_alone_s: float  # medians of the decode batch; alone: nothing arrives, the source does the same
    gap_s: float
    gap_p99_s: float
    cost: Interval  # seconds that one hand-off adds to the decode batch, summed over the gaps it fell into
    num_repeats: int


def analyse(run: Run) -> Results:
    """Raises RunError where no hand-off, or no gap alone, was measured."""
    receipts, gaps = run.tables["receipts"], run.tables["receiving_gaps"]
    if receipts.empty or not (gaps["payload_bytes"] == 0).any():
        raise RunError(f"{run.paths[0]}: no hand-off, or no gap alone, was timed; let the run go on, or measure again")
    found = measure(receipts, gaps)
    if all(np.isnan(each.bill_ratio) for each in found):
        raise RunError(f"{run.paths[0]}: no hand-off was timed with both ends idle; let the run go on")
    decoding = [each for each in found if each.num_decode_seqs]
    worst = max(decoding, key=lambda each: each.gap_s / each.gap_alone_s)
    dearest = max(decoding, key=lambda each: each.bill_ratio)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"Up to {worst.gap_s / worst.gap_alone_s:.3g} times the decode gap while KV arrives.",
        because=sentence(
            f"{format_bytes(worst.payload_bytes)} beside {_decodes(worst.num_decode_seqs)}: median gap "
            f"{number(worst.gap_alone_s, 's')} alone, {number(worst.gap_s, 's')} while receiving; the bill under load "
            f"is up to {dearest.bill_ratio:.3g} times the isolated one"
        ),
        tables=[bill_table(run, found), gap_table(run, decoding)],
        frame=tidy(run, found),
        plots=[
            Plot(
                "Decode gaps while KV arrives",
                "Median gap of the decode batch alone and while a hand-off of each size arrives; whiskers reach to "
                "p99. Source idle but for sending.",
                lambda figure: draw_gaps(figure, decoding),
            )
        ],
    )


def measure(receipts: pd.DataFrame, gaps: pd.DataFrame) -> list[Contended]:
    """One Contended per payload and load, smallest payload and lightest load first."""
    isolated = receipts[(receipts["num_decode_seqs"] == 0) & (receipts["prefill_tokens"] == 0)]
    found = []
    for payload, batch, prefill in sorted(receipts[LOAD].drop_duplicates().itertuples(index=False)):
        chosen = _with(receipts, payload, batch, prefill)
        beside = _with(gaps, payload, batch, prefill)
        own_alone = _with(gaps, 0, batch, prefill)
        bill_s = float(chosen["seconds"].median())
        found.append(
            Contended(
                payload_bytes=payload,
                num_decode_seqs=batch,
                prefill_tokens=prefill,
                bill_s=bill_s,
                bill_ratio=bill_s / float(isolated.loc[isolated["payload_bytes"] == payload, "seconds"].median()),
                gap_alone_s=float(own_alone["gap_s"].median()),
                gap_s=float(beside["gap_s"].median()),
                gap_p99_s=float(beside["gap_s"].quantile(0.99)),
                cost=bootstrap_mean(receiving_costs(beside, own_alone)),
                num_repeats=int(chosen["repeat"].nunique()),
            )
        )
    return found


def receiving_costs(beside: pd.DataFrame, alone: pd.DataFrame) -> pd.Series:
    """What a hand-off added to the decode batch, by repeat: the gaps it fell into, less as many median gaps alone."""
    usual = alone.groupby("repeat")["gap_s"].median()
    base = beside["repeat"].map(usual)
    added = pd.Series(metrics.interference_s(beside["gap_s"], base), index=beside.index)
    return added.groupby([beside["rank"], beside["repeat"]]).sum(min_count=1).groupby("repeat").mean()


def bill_table(run: Run, found: Sequence[Contended]) -> Table:
    rows = [
        (
            format_bytes(each.payload_bytes),
            _decodes(each.num_decode_seqs) if each.num_decode_seqs else "idle",
            f"prefills {each.prefill_tokens}" if each.prefill_tokens else "idle",
            number(each.bill_s, "s"),
            "isolated" if _is_isolated(each) else f"{each.bill_ratio:.3g}",
        )
        for each in found
    ]
    columns = ("payload", "destination", "source", "bill p50", "ratio to isolated")
    notes = ["From the destination's go to its last byte; KV moves between layers and steps on the workers' threads."]
    return Table(titled("The bill isolated and under load, measured", run.labels), columns, rows, notes, num_left=3)


def gap_table(run: Run, decoding: Sequence[Contended]) -> Table:
    rows = [
        (
            format_bytes(each.payload_bytes),
            str(each.num_decode_seqs),
            "prefills" if each.prefill_tokens else "idle",
            number(each.gap_alone_s, "s"),
            number(each.gap_s, "s"),
            number(each.gap_p99_s, "s"),
            f"{each.gap_s / each.gap_alone_s:.3g}" if each.gap_s else NONE,
            interval(each.cost, "s"),
        )
        for each in decoding
    ]
    columns = ("payload", "decodes", "source", "alone p50", "p50", "p99", "ratio", "cost")
    notes = [
        "Decode gaps while KV arrives; alone: the same batch with nothing arriving, while the source does the same.",
        "Cost: seconds that one hand-off adds to the decode batch, summed over the gaps it fell into; every sequence "
        "of the batch waits as long.",
        interval_note(min(each.num_repeats for each in decoding), "repeats"),
    ]
    return Table(titled("What receiving costs the decode step, measured", run.labels), columns, rows, notes)


def draw_gaps(figure: Figure, decoding: Sequence[Contended]) -> None:
    axes = figure.add_subplot()
    quiet = [each for each in decoding if not each.prefill_tokens]
    labels = [f"{_decodes(each.num_decode_seqs)},\n{format_bytes(each.payload_bytes)}" for each in quiet]
    places = np.arange(len(quiet))
    p50, p99 = np.array([each.gap_s for each in quiet]), np.array([each.gap_p99_s for each in quiet])
    axes.bar(places - 0.2, [each.gap_alone_s for each in quiet], 0.38, color=MUTED, label="alone")
    axes.bar(places + 0.2, p50, 0.38, color=COST, label="receiving")
    axes.errorbar(places + 0.2, p50, [np.zeros(len(p50)), np.maximum(p99 - p50, 0)], fmt="none", ecolor=MUTED)
    axes.set_xticks(places, labels, fontsize=8)
    axes.set(ylabel="gap", ylim=(0, None))
    seconds_axis(axes)
    axes.legend(loc="upper left")


def tidy(run: Run, found: Sequence[Contended]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **config_columns(run),
            "payload_bytes": each.payload_bytes,
            "num_decode_seqs": each.num_decode_seqs,
            "prefill_tokens": each.prefill_tokens,
            "bill_s_p50": each.bill_s,
            "bill_ratio": each.bill_ratio,
            "gap_alone_s_p50": each.gap_alone_s,
            "gap_s_p50": each.gap_s,
            "gap_s_p99": each.gap_p99_s,
            "cost_s": each.cost.mid,
            "cost_s_low": each.cost.low,
            "cost_s_high": each.cost.high,
        }
        for each in found
    )


def _with(rows: pd.DataFrame, payload_bytes: int, num_decode_seqs: int, prefill_tokens: int) -> pd.DataFrame:
    chosen: pd.DataFrame = rows[(rows[LOAD] == [payload_bytes, num_decode_seqs, prefill_tokens]).all(axis=1)]
    return chosen


def _is_isolated(each: Contended) -> bool:
    return not each.num_decode_seqs and not each.prefill_tokens


def _decodes(count: int) -> str:
    return f"{count} decode{'' if count == 1 else 's'}"


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("contention", __doc__ or ""), ["contention"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
