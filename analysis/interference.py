"""What prefill does to its neighbours: gaps of a decode batch alone and beside chunks of each size.

python -m analysis.interference runs/interference/20260101-120000-000000
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
from analysis.format import interval, interval_note, number, sentence
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import SERIES, seconds_axis
from analysis.tables import config_columns
from xpyd import metrics
from xpyd.economics.verdict import Interval


@dataclass(frozen=True)
class Effect:
    """Gaps of ``num_decode_seqs`` decodes beside ``chunk_tokens`` of prefill (0: alone), over all repeats."""

    num_decode_seqs: int
    chunk_tokens: int
    p50_s: float
    p99_s: float
    max_s: float
    added: Interval  # interference_s: median gap less the same batch's median gap alone, by repeat
    ratio: float  # median gap over the median gap alone
    num_repeats: int


def analyse(run: Run) -> Results:
    """Raises RunError where the gaps alone, or all others, are missing."""
    effects = measure_effects(run.tables["gaps"])
    beside = [effect for effect in effects if effect.chunk_tokens]
    if not beside:
        raise RunError(
            f"{run.paths[0]}: no gap beside a prefill chunk was measured; let the run go on, or measure again"
        )
    worst = max(beside, key=lambda effect: effect.ratio)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"Up to {worst.ratio:.3g} times the gap beside prefill.",
        because=sentence(
            f"{_decodes(worst.num_decode_seqs)} beside {worst.chunk_tokens} prefill tokens: median gap "
            f"{number(worst.p50_s, 's')}, which is {number(worst.added.mid, 's')} more than alone"
        ),
        tables=[effect_table(run, effects)],
        frame=tidy_effects(run, effects),
        plots=[
            Plot(
                "Gaps beside prefill chunks",
                "Median gap of the decode batch by chunk size; the shade reaches to p99. 0 tokens: alone.",
                lambda figure: draw_effects(figure, effects),
            )
        ],
    )


def measure_effects(gaps: pd.DataFrame) -> list[Effect]:
    """One Effect per decode batch and chunk size. Batches without gaps alone are left out: nothing to compare with."""
    effects = []
    for batch in sorted(gaps["num_decode_seqs"].unique()):
        own = gaps[gaps["num_decode_seqs"] == batch]
        alone = own[own["chunk_tokens"] == 0]
        if len(alone):
            chunks = sorted(own["chunk_tokens"].unique())
            effects += [_effect(own[own["chunk_tokens"] == chunk], alone) for chunk in chunks]
    return effects


def _effect(chosen: pd.DataFrame, alone: pd.DataFrame) -> Effect:
    medians = chosen.groupby("repeat")["gap_s"].median()
    added = metrics.interference_s(medians, alone.groupby("repeat")["gap_s"].median().reindex(medians.index))
    p50, p99, largest = (float(chosen["gap_s"].quantile(q)) for q in (0.5, 0.99, 1.0))
    return Effect(
        num_decode_seqs=int(chosen["num_decode_seqs"].iloc[0]),
        chunk_tokens=int(chosen["chunk_tokens"].iloc[0]),
        p50_s=p50,
        p99_s=p99,
        max_s=largest,
        added=bootstrap_mean(added),
        ratio=p50 / float(alone["gap_s"].median()),
        num_repeats=len(medians),
    )


def effect_table(run: Run, effects: Sequence[Effect]) -> Table:
    rows = [
        (
            str(effect.num_decode_seqs),
            str(effect.chunk_tokens) if effect.chunk_tokens else "alone",
            number(effect.p50_s, "s"),
            number(effect.p99_s, "s"),
            number(effect.max_s, "s"),
            interval(effect.added, "s") if effect.chunk_tokens else "",
            f"{effect.ratio:.3g}",
        )
        for effect in effects
    ]
    columns = ("decodes", "prefill tokens beside", "gap p50", "p99", "max", "interference_s", "ratio to alone")
    notes = [interval_note(min(effect.num_repeats for effect in effects), "repeats")]
    return Table(titled("Gaps beside prefill, measured", run.labels), columns, rows, notes, num_left=2)


def draw_effects(figure: Figure, effects: Sequence[Effect]) -> None:
    axes = figure.add_subplot()
    batches = sorted({effect.num_decode_seqs for effect in effects})
    sizes = sorted({effect.chunk_tokens for effect in effects})
    for batch, colour in zip(batches, list(SERIES) * 4, strict=False):
        own = sorted((e for e in effects if e.num_decode_seqs == batch), key=lambda effect: effect.chunk_tokens)
        places = [sizes.index(effect.chunk_tokens) for effect in own]
        p50, p99 = np.array([e.p50_s for e in own]), np.array([e.p99_s for e in own])
        axes.plot(places, p50, "o-", color=colour, label=_decodes(batch), markersize=5)
        axes.fill_between(places, p50, p99, color=colour, alpha=0.15, lw=0)
    axes.set_xticks(range(len(sizes)), [str(size) if size else "alone" for size in sizes])
    axes.set(xlabel="prefill tokens beside", ylabel="gap", ylim=(0, None))
    seconds_axis(axes)
    axes.legend(loc="upper left")


def tidy_effects(run: Run, effects: Sequence[Effect]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **config_columns(run),
            "num_decode_seqs": effect.num_decode_seqs,
            "chunk_tokens": effect.chunk_tokens,
            "gap_s_p50": effect.p50_s,
            "gap_s_p99": effect.p99_s,
            "gap_s_max": effect.max_s,
            "interference_s": effect.added.mid,
            "interference_s_low": effect.added.low,
            "interference_s_high": effect.added.high,
            "ratio": effect.ratio,
        }
        for effect in effects
    )


def _decodes(count: int) -> str:
    return f"{count} decode{'' if count == 1 else 's'}"


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("interference", __doc__ or ""), ["interference"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
