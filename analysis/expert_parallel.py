"""Expert parallelism by ranks: speed-up, what travels between ranks and between nodes, plain against optimized.

python -m analysis.expert_parallel runs/expert_parallel/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import interval, interval_note, number
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import MUTED, SERIES
from analysis.tables import config_columns
from xpyd.economics.verdict import Interval

ALONE = "one rank"
VARIANTS = ("contiguous", "overlapped", "placed")
PLAIN, PLACED = VARIANTS[0], VARIANTS[-1]


@dataclass(frozen=True)
class Point:
    """One kind of step on one instance: medians over steps; bytes are those of a step, all ranks together."""

    step: str
    width: int
    variant: str
    num_cores: int
    num_nodes: int
    p50_s: float
    speedup: Interval  # over one rank, by repeat
    exchange_share: float
    sent_bytes: int
    cross_node_bytes: int
    logit_error: float

    @property
    def ranks(self) -> str:
        return f"{self.width}{' (oversubscribed)' if self.num_cores < self.width else ''}"


def analyse(run: Run) -> Results:
    """Raises RunError where no step of several ranks was measured."""
    found = points_of(run.tables["experts"])
    several = [point for point in found if point.width > 1]
    if not several:
        raise RunError(f"{run.paths[0]}: no step of several ranks was measured; let the run go on, or measure again")
    labels = labels_of(run)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=_answer(found),
        because=f"Logits differ from one rank's by {max(point.logit_error for point in several):.1g} at most.",
        tables=[step_table(run, found, labels), wire_table(several, labels)],
        frame=tidy(run, found),
        plots=[
            Plot(
                "Bytes between nodes in a step",
                "Dispatch and combine, all ranks together, with experts in order and placed near their tokens.",
                lambda figure: draw_bytes(figure, several),
            ),
            Plot(
                "Speed-up by ranks",
                "Median step of one rank over that of n ranks, one thread each; placed and overlapped. Dashed: n times "
                "as fast.",
                lambda figure: draw_speedup(figure, found),
            ),
        ],
    )


def labels_of(run: Run) -> list[str]:
    nodes = (run.config.get("sweep") or {}).get("emulated_nodes")
    return [*run.labels, *([f"{nodes} emulated nodes"] if nodes else [])]


def points_of(rows: pd.DataFrame) -> list[Point]:
    """By kind of step, ranks and variant; kinds without steps of one rank are left out."""
    found = []
    for (tokens, seqs), own in rows.groupby(["prompt_tokens", "num_seqs"]):
        alone = own[own["width"] == 1].groupby("repeat")["step_s"].median()
        if alone.empty:
            continue
        step = f"{seqs} prompts of {tokens}" if tokens else f"{seqs} decodes"
        for width, variant in [(1, ALONE), *((w, v) for w in sorted(set(own["width"]) - {1}) for v in VARIANTS)]:
            chosen = own[(own["width"] == width) & (own["variant"] == variant)]
            if not chosen.empty:
                found.append(_point(step, chosen, alone))
    return found


def _point(step: str, chosen: pd.DataFrame, alone: pd.Series[float]) -> Point:
    first = chosen.iloc[0]
    return Point(
        step=step,
        width=int(first["width"]),
        variant=str(first["variant"]),
        num_cores=int(first["num_cores"]),
        num_nodes=int(first["num_nodes"]),
        p50_s=float(chosen["step_s"].median()),
        speedup=bootstrap_mean(alone / chosen.groupby("repeat")["step_s"].median()),
        exchange_share=float((chosen["exchange_s"] / chosen["step_s"]).median()),
        sent_bytes=int(chosen["sent_bytes"].median()),
        cross_node_bytes=int(chosen["cross_node_bytes"].median()),
        logit_error=float(chosen["logit_error"].max()),
    )


def saved_share(found: Sequence[Point]) -> dict[tuple[str, int], float]:
    """By step and ranks on several nodes: the share of the bytes between nodes that the placement saves."""
    crossing = {(p.step, p.width, p.variant): p.cross_node_bytes for p in found if p.num_nodes > 1}
    return {
        (step, width): 1 - crossing[step, width, PLACED] / plain
        for (step, width, variant), plain in crossing.items()
        if variant == PLAIN and plain and (step, width, PLACED) in crossing
    }


def _answer(found: Sequence[Point]) -> str:
    saved = saved_share(found)
    if not saved:
        return "One node: nothing crosses between nodes."
    told = f"{number(min(saved.values()), 'share')} to {number(max(saved.values()), 'share')}"
    return f"Experts near their tokens save {told} of the bytes between nodes, {fmean(saved.values()):.0%} in the mean."


def step_table(run: Run, found: Sequence[Point], labels: Sequence[str]) -> Table:
    rows = [
        (
            point.step,
            point.ranks,
            point.variant,
            number(point.p50_s, "s"),
            interval(point.speedup, "") if point.width > 1 else "",
            number(point.exchange_share, "share") if point.width > 1 else "",
            f"{point.logit_error:.1g}" if point.width > 1 else "",
        )
        for point in found
    ]
    notes = [
        interval_note(int(run.tables["experts"]["repeat"].nunique()), "repeats"),
        "A step's sequences are divided among the ranks. Contiguous: experts in order, the shared expert after the "
        "exchange. Overlapped: it runs, and so do the rank's own tokens, while others travel. Placed: also experts "
        "near their tokens. In exchanges: rank 1's time there, waiting for slower ranks included.",
    ]
    if any(point.num_cores < point.width for point in found):
        notes.append("Oversubscribed: more ranks than cores, so these rows show no scaling.")
    columns = ("step", "ranks", "variant", "step p50", "speed-up", "in exchanges", "logit error")
    return Table(titled("Steps by expert-parallel ranks, measured", labels), columns, rows, notes, num_left=3)


def wire_table(several: Sequence[Point], labels: Sequence[str]) -> Table:
    saved = saved_share(several)
    rows = [
        (
            point.step,
            str(point.width),
            str(point.num_nodes),
            point.variant,
            number(point.sent_bytes, "bytes"),
            number(point.cross_node_bytes, "bytes"),
            number(saved.get((point.step, point.width), float("nan")), "share") if point.variant == PLACED else "",
        )
        for point in several
        if point.variant in (PLAIN, PLACED)
    ]
    notes = [
        "Dispatch and combine of a step, all layers and ranks together, counted by the exchange. A token goes once to "
        "each rank that holds one of its experts.",
        "The map was made from other prompts of the same domains; every rank holds equally many experts.",
    ]
    columns = ("step", "ranks", "nodes", "experts", "sent", "between nodes", "saved")
    return Table(titled("Bytes by placement of experts, measured", labels), columns, rows, notes, num_left=4)


def draw_bytes(figure: Figure, several: Sequence[Point]) -> None:
    axes = figure.add_subplot()
    kinds = list(dict.fromkeys((point.step, point.width) for point in several if point.num_nodes > 1))
    places = np.arange(len(kinds))
    for offset, variant, colour in ((-0.19, PLAIN, MUTED), (0.19, PLACED, SERIES[2])):
        of = {(p.step, p.width): p.cross_node_bytes / 1024 for p in several if p.variant == variant}
        axes.bar(places + offset, [of.get(kind, np.nan) for kind in kinds], 0.36, color=colour, label=variant)
    axes.set_xticks(places, [f"{step}\n{width} ranks" for step, width in kinds], fontsize=7)
    axes.set(yscale="log", ylabel="KiB a step")
    axes.grid(axis="x", visible=False)
    if kinds:
        axes.legend(loc="best")


def draw_speedup(figure: Figure, found: Sequence[Point]) -> None:
    axes = figure.add_subplot()
    widths = sorted({point.width for point in found})
    chosen = [point for point in found if point.variant in (ALONE, PLACED)]
    for step, colour in zip(dict.fromkeys(point.step for point in chosen), list(SERIES) * 4, strict=False):
        own = [point for point in chosen if point.step == step]
        places = [widths.index(point.width) for point in own]
        axes.plot(places, [point.speedup.mid for point in own], "o-", color=colour, label=step, markersize=5)
    axes.plot(np.arange(len(widths)), widths, "--", color="0.6", lw=1)
    names = {point.width: point.ranks for point in found}
    axes.set_xticks(range(len(widths)), [names[width] for width in widths])
    axes.set(xlabel="ranks", ylabel="speed-up", ylim=(0, None))
    axes.legend(loc="upper left")


def tidy(run: Run, found: Sequence[Point]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **config_columns(run),
            "step": point.step,
            "width": point.width,
            "variant": point.variant,
            "num_cores": point.num_cores,
            "num_nodes": point.num_nodes,
            "step_s_p50": point.p50_s,
            "speedup": point.speedup.mid,
            "speedup_low": point.speedup.low,
            "speedup_high": point.speedup.high,
            "exchange_share": point.exchange_share,
            "sent_bytes": point.sent_bytes,
            "cross_node_bytes": point.cross_node_bytes,
            "logit_error": point.logit_error,
        }
        for point in found
    )


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("expert_parallel", __doc__ or ""), ["expert_parallel"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
