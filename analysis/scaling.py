"""How prefill and decode steps scale with the ranks of an instance, in each way that they divide the work.

python -m analysis.scaling runs/scaling/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import interval, interval_note, number, sentence
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import SERIES
from analysis.tables import config_columns
from xpyd.economics.pipeline import bubble_share
from xpyd.economics.verdict import Interval

TITLES = {
    "tp": "tensor-parallel ranks",
    "pp": "pipeline stages",
    "cp": "context-parallel ranks",
    "ep": "expert-parallel ranks",
}


@dataclass(frozen=True)
class Scaled:
    """One kind of step in one way, over all repeats; ``speedup``: median step of one rank over that of this way.

    ``gain``: the same over the median of the kind's baseline, its first variant. Shares are means over the ranks.
    """

    kind: str
    variant: str
    num_micro_batches: int
    step: str
    width: int
    num_cores: int
    p50_s: float
    speedup: Interval
    gain: Interval | None  # None for the baseline itself
    exchange_share: float  # of the step, with other ranks, waiting included
    exchange_bytes: int  # that the leader puts in
    work_share: float  # CPU seconds of a rank outside of it, over those of one rank alone
    imbalance: float  # the most loaded rank's CPU seconds over the mean
    logit_error: float
    num_repeats: int

    @property
    def oversubscribed(self) -> bool:
        return self.width > self.num_cores

    @property
    def ranks(self) -> str:
        return f"{self.width}{' (oversubscribed)' if self.oversubscribed else ''}"

    @property
    def name(self) -> str:
        """What a line of the plot is: the step, and the variant where there are several."""
        return f"{self.step}, {self.variant}" if self.variant else self.step


Column = tuple[str, Callable[[Scaled], str]]
FIRST: tuple[Column, ...] = (
    ("step p50", lambda s: number(s.p50_s, "s")),
    ("speed-up", lambda s: interval(s.speedup, "")),
)
GAIN: Column = ("against the first", lambda s: interval(s.gain, "") if s.gain is not None else "")
LAST: tuple[Column, ...] = (
    ("in exchange", lambda s: number(s.exchange_share, "share")),
    ("bytes given", lambda s: number(s.exchange_bytes, "bytes")),
    ("logit error", lambda s: f"{s.logit_error:.1g}"),
)
WORK: Column = ("work of a rank", lambda s: number(s.work_share, "share"))
COLUMNS: dict[str, tuple[Column, ...]] = {
    "tp": (*FIRST, WORK, *LAST),
    "pp": (
        *FIRST,
        GAIN,
        WORK,
        ("bubble, modeled", lambda s: number(bubble_share(s.width, s.num_micro_batches), "share")),
        *LAST,
    ),
    "cp": (*FIRST, GAIN, WORK, ("imbalance", lambda s: number(s.imbalance, "")), *LAST),
    "ep": (*FIRST, WORK, ("imbalance", lambda s: number(s.imbalance, "")), *LAST),
}
NOTES = {
    "tp": "Exchange: two sums over the ranks in each layer, and one join of the logits.",
    "pp": "Exchange: hidden states from stage to stage, and the wait for them and for the tokens. Bubble: the part "
    "of it that equal stages would idle, (stages - 1) / (micro-batches + stages - 1).",
    "cp": "Exchange: keys and values of all ranks' tokens, gathered in each layer. Imbalance: the most loaded rank's "
    "CPU seconds over the mean of all.",
    "ep": "Exchange: all ranks' tokens before attention, sums of a rank's own after it, and tokens on their way to "
    "their experts' ranks and back, in each layer. Imbalance: the most loaded rank's CPU seconds over the mean of all.",
}


def analyse(run: Run) -> Results:
    """Raises RunError where no step of one rank alone, or of several, was measured."""
    found = list(measure_scaling(run.tables["scaling"]))
    several = [scaled for scaled in found if scaled.width > 1]
    if not several:
        raise RunError(f"{run.paths[0]}: no step of several ranks beside one rank; let the run go on, or measure again")
    best = max(several, key=lambda scaled: scaled.speedup.mid)
    kinds = [kind for kind in TITLES if any(scaled.kind == kind for scaled in several)]
    crowded = " (oversubscribed)" if best.oversubscribed else ""
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"At best {best.speedup.mid:.3g} times as fast, on {best.width} {TITLES[best.kind]}{crowded}.",
        because=sentence(
            f"{best.name}: {number(best.p50_s, 's')} a step on {best.width} ranks, {best.exchange_share:.0%} of it in "
            f"exchange between ranks; logits are off by {max(s.logit_error for s in several):.1g} at most"
        ),
        tables=[scaling_table(run, found, kind) for kind in kinds],
        frame=tidy(run, found),
        plots=[
            Plot(
                "Speed-up by ranks",
                "Median step of one rank over the median step of n ranks, one thread each. Dashed: n times as fast.",
                lambda figure: draw(figure, found, kinds),
            )
        ],
    )


def measure_scaling(rows: pd.DataFrame) -> Iterator[Scaled]:
    """One entry per kind of step and way, in that order; kinds of step that one rank did not run are left out."""
    for (prompt, batch), own in rows.groupby(["num_prefill_tokens", "num_decode_seqs"]):
        alone = own[own["width"] == 1]
        if alone.empty:
            continue
        step = f"prefill of {prompt}" if prompt else f"decode of {batch}"
        baselines: dict[tuple[str, int], pd.Series[float]] = {}
        # In this order baselines come first: the fewest micro-batches, and contiguous before zigzag.
        for _, way in own.groupby(["kind", "width", "num_micro_batches", "variant"]):
            first, medians = way.iloc[0], _medians(way)
            baseline = baselines.setdefault((str(first["kind"]), int(first["width"])), medians)
            work_s = way.groupby("rank")["work_s"].median()
            yield Scaled(
                kind=str(first["kind"]),
                variant=str(first["variant"]),
                num_micro_batches=int(first["num_micro_batches"]),
                step=step,
                width=int(first["width"]),
                num_cores=int(first["num_cores"]),
                p50_s=float(way.loc[way["rank"] == 0, "step_s"].median()),
                speedup=bootstrap_mean(_medians(alone) / medians),
                gain=None if baseline is medians else bootstrap_mean(baseline / medians),
                exchange_share=float((way["exchange_s"] / way["step_s"]).groupby(way["rank"]).median().mean()),
                exchange_bytes=int(way.loc[way["rank"] == 0, "exchange_bytes"].median()),
                work_share=float(work_s.mean() / alone["work_s"].median()),
                imbalance=float(work_s.max() / work_s.mean()),
                logit_error=float(way["logit_error"].max()),
                num_repeats=int(medians.notna().sum()),
            )


def _medians(way: pd.DataFrame) -> pd.Series[float]:
    """The leader's median step of each repeat."""
    return way[way["rank"] == 0].groupby("repeat")["step_s"].median()


def scaling_table(run: Run, found: Sequence[Scaled], kind: str) -> Table:
    """The steps that instances of this kind ran, each behind one rank's."""
    divided = [scaled for scaled in found if scaled.kind == kind and scaled.width > 1]
    with_variant = any(scaled.variant for scaled in divided)
    rows = []
    for step in dict.fromkeys(scaled.step for scaled in divided):
        alone = next(scaled for scaled in found if scaled.step == step and scaled.width == 1)
        rows.append((step, "1", *([""] * with_variant), number(alone.p50_s, "s"), *[""] * (len(COLUMNS[kind]) - 1)))
        rows += [
            (step, scaled.ranks, *([scaled.variant] * with_variant), *(cell(scaled) for _, cell in COLUMNS[kind]))
            for scaled in divided
            if scaled.step == step
        ]
    columns = ("step", "ranks", *(["variant"] * with_variant), *(title for title, _ in COLUMNS[kind]))
    notes = [
        interval_note(min(scaled.num_repeats for scaled in divided), "repeats"),
        "One thread per rank. Work of a rank: its CPU seconds outside the exchange, mean of the ranks, over those of "
        "one rank alone; other jobs on the machine change it far less than the speed-up.",
        "In exchange: the median share of a step, mean of the ranks, waiting for slower ones included; bytes are what "
        f"the leader gives. {NOTES[kind]}",
    ]
    if any(scaled.oversubscribed for scaled in divided):
        notes.append("Oversubscribed: more ranks than cores, so these rows show no scaling.")
    title = titled(f"Steps by {TITLES[kind]}, measured", run.labels)
    return Table(title, columns, rows, notes, num_left=2 + with_variant)


def draw(figure: Figure, found: Sequence[Scaled], kinds: Sequence[str]) -> None:
    """One panel for each kind: a line for each step and variant."""
    for axes, kind in zip(figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0], kinds, strict=True):
        divided = [scaled for scaled in found if scaled.kind == kind and scaled.width > 1]
        widths = [1, *sorted({scaled.width for scaled in divided})]
        names = dict.fromkeys(scaled.name for scaled in divided)
        for name, colour in zip(names, list(SERIES) * 4, strict=False):
            own = [scaled for scaled in divided if scaled.name == name]
            places = [0, *(widths.index(scaled.width) for scaled in own)]
            axes.plot(places, [1.0, *(scaled.speedup.mid for scaled in own)], "o-", color=colour, label=name, ms=5)
        axes.plot(np.arange(len(widths)), widths, "--", color="0.6", lw=1)
        crowded = {scaled.width for scaled in divided if scaled.oversubscribed}
        axes.set_xticks(range(len(widths)), [f"{width}{'*' if width in crowded else ''}" for width in widths])
        axes.set(xlabel=f"{TITLES[kind]}{' (*: oversubscribed)' if crowded else ''}", ylim=(0, None))
        axes.legend(loc="upper left", fontsize=7)
    figure.axes[0].set_ylabel("speed-up")


def tidy(run: Run, found: Sequence[Scaled]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **config_columns(run),
            "kind": scaled.kind,
            "variant": scaled.variant,
            "step": scaled.step,
            "width": scaled.width,
            "num_cores": scaled.num_cores,
            "step_s_p50": scaled.p50_s,
            "speedup": scaled.speedup.mid,
            "speedup_low": scaled.speedup.low,
            "speedup_high": scaled.speedup.high,
            "gain": scaled.gain.mid if scaled.gain is not None else np.nan,
            "exchange_share": scaled.exchange_share,
            "exchange_bytes": scaled.exchange_bytes,
            "work_share": scaled.work_share,
            "imbalance": scaled.imbalance,
            "logit_error": scaled.logit_error,
        }
        for scaled in found
    )


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("scaling", __doc__ or ""), ["scaling"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
