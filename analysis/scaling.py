"""How prefill and decode steps scale with the tensor-parallel ranks of an instance, beside one rank alone.

python -m analysis.scaling runs/scaling/20260101-120000-000000
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
from analysis.style import SERIES
from analysis.tables import config_columns
from xpyd.economics.verdict import Interval


@dataclass(frozen=True)
class Scaled:
    """One kind of step at one width, over all repeats; ``speedup``: median step of one rank over that of this width."""

    step: str
    width: int
    num_cores: int
    p50_s: float
    speedup: Interval
    reduce_share: float  # of the step, in sums over ranks
    reduce_bytes: int
    work_share: float  # CPU seconds of a rank outside the sums, over those of one rank alone
    logit_error: float
    num_repeats: int

    @property
    def oversubscribed(self) -> bool:
        return self.width > self.num_cores


def analyse(run: Run) -> Results:
    """Raises RunError where no step of one rank alone, or of several, was measured."""
    found = measure_scaling(run.tables["scaling"])
    several = [scaled for scaled in found if scaled.width > 1]
    if not several:
        raise RunError(f"{run.paths[0]}: no step of several ranks beside one rank; let the run go on, or measure again")
    best = max(several, key=lambda scaled: scaled.speedup.mid)
    crowded = " (oversubscribed)" if best.oversubscribed else ""
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"At best {best.speedup.mid:.3g} times as fast, on {best.width} ranks{crowded}.",
        because=sentence(
            f"{best.step}: {number(best.p50_s, 's')} a step on {best.width} ranks, {best.reduce_share:.0%} of it in "
            f"sums over ranks; logits differ from one rank's by {max(s.logit_error for s in several):.1g} at most"
        ),
        tables=[scaling_table(run, found)],
        frame=tidy(run, found),
        plots=[
            Plot(
                "Speed-up by ranks",
                "Median step of one rank over the median step of n ranks, one thread each. Dashed: n times as fast.",
                lambda figure: draw(figure, found),
            )
        ],
    )


def measure_scaling(rows: pd.DataFrame) -> list[Scaled]:
    """One entry per kind of step and width, in that order; kinds without steps of one rank are left out."""
    found = []
    for (prompt, batch), own in rows.groupby(["num_prefill_tokens", "num_decode_seqs"]):
        work_s = own.groupby("width")["work_s"].median()
        medians = own.pivot_table(index="repeat", columns="width", values="step_s", aggfunc="median")
        if 1 not in medians:
            continue
        step = f"prefill of {prompt}" if prompt else f"decode of {batch}"
        for width in sorted(own["width"].unique()):
            chosen = own[own["width"] == width]
            found.append(
                Scaled(
                    step=step,
                    width=int(width),
                    num_cores=int(chosen["num_cores"].iloc[0]),
                    p50_s=float(chosen["step_s"].median()),
                    speedup=bootstrap_mean(medians[1] / medians[width]),
                    reduce_share=float((chosen["reduce_s"] / chosen["step_s"]).median()),
                    reduce_bytes=int(chosen["reduce_bytes"].median()),
                    work_share=float(work_s[width] / work_s[1]),
                    logit_error=float(chosen["logit_error"].max()),
                    num_repeats=int(medians[width].notna().sum()),
                )
            )
    return found


def scaling_table(run: Run, found: Sequence[Scaled]) -> Table:
    rows = [
        (
            scaled.step,
            f"{scaled.width}{' (oversubscribed)' if scaled.oversubscribed else ''}",
            number(scaled.p50_s, "s"),
            interval(scaled.speedup, "") if scaled.width > 1 else "",
            number(scaled.work_share, "share") if scaled.width > 1 else "",
            number(scaled.reduce_share, "share") if scaled.width > 1 else "",
            number(scaled.reduce_bytes, "bytes") if scaled.width > 1 else "",
            f"{scaled.logit_error:.1g}" if scaled.width > 1 else "",
        )
        for scaled in found
    ]
    columns = ("step", "ranks", "step p50", "speed-up", "work of a rank", "in sums", "bytes summed", "logit error")
    notes = [
        interval_note(min(scaled.num_repeats for scaled in found), "repeats"),
        "One thread per rank. Work of a rank: its CPU seconds outside the sums, over those of one rank alone; other "
        "jobs on the machine change it far less than the speed-up.",
        "In sums: the median share of a step spent in sums over ranks and in joining the logits, "
        "waiting for slower ranks included; bytes are what one rank puts in.",
    ]
    if any(scaled.oversubscribed for scaled in found):
        notes.append("Oversubscribed: more ranks than cores, so these rows show no scaling.")
    return Table(titled("Steps by tensor-parallel ranks, measured", run.labels), columns, rows, notes, num_left=2)


def draw(figure: Figure, found: Sequence[Scaled]) -> None:
    axes = figure.add_subplot()
    widths = sorted({scaled.width for scaled in found})
    for step, colour in zip(dict.fromkeys(scaled.step for scaled in found), list(SERIES) * 4, strict=False):
        own = [scaled for scaled in found if scaled.step == step]
        places = [widths.index(scaled.width) for scaled in own]
        axes.plot(places, [scaled.speedup.mid for scaled in own], "o-", color=colour, label=step, markersize=5)
    axes.plot(np.arange(len(widths)), widths, "--", color="0.6", lw=1)
    crowded = {scaled.width for scaled in found if scaled.oversubscribed}
    axes.set_xticks(
        range(len(widths)), [f"{width}{' (oversubscribed)' if width in crowded else ''}" for width in widths]
    )
    axes.set(xlabel="ranks", ylabel="speed-up", ylim=(0, None))
    axes.legend(loc="upper left")


def tidy(run: Run, found: Sequence[Scaled]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            **config_columns(run),
            "step": scaled.step,
            "width": scaled.width,
            "num_cores": scaled.num_cores,
            "step_s_p50": scaled.p50_s,
            "speedup": scaled.speedup.mid,
            "speedup_low": scaled.speedup.low,
            "speedup_high": scaled.speedup.high,
            "reduce_share": scaled.reduce_share,
            "reduce_bytes": scaled.reduce_bytes,
            "work_share": scaled.work_share,
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
