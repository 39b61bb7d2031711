"""Both ledgers in closed form, over prompt length and link rate: where splitting could pay before anything runs.

python -m analysis.economics runs/economics/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import digits, number
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.style import INK, MARKERS, MUTED, SERIES, seconds_axis
from analysis.tables import config_columns
from xpyd.economics.verdict import Answer
from xpyd.units import format_bytes

# Short words for the answers, where there is one per link rate; the note below the table spells them out.
SHORT = {
    Answer.SPLIT.value: "split",
    Answer.LINK_TOO_SLOW.value: "slow link",
    Answer.NO_INTERFERENCE.value: "no win",
    Answer.UNDECIDED.value: "undecided",
}
LEGEND = "; ".join(f"{SHORT[a.value]}: {a.value}" for a in (Answer.LINK_TOO_SLOW, Answer.NO_INTERFERENCE)) + "."


def analyse(run: Run) -> Results:
    """Raises RunError for a run without points."""
    points = run.tables["economics"]
    if points.empty:
        raise RunError(f"{run.paths[0]}: holds no points; run the experiment again")
    splits = points[points["verdict"] == Answer.SPLIT.value]
    too_slow = points[points["verdict"] != Answer.SPLIT.value]["rate_gbps"]
    enough = sorted(set(points["rate_gbps"]) - set(too_slow))
    because = f"At {enough[0]:g} Gb/s it pays at every length." if enough else "At no rate it pays at every length."
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"Modeled: splitting pays in {len(splits)} of {len(points)} cells of length and link rate.",
        because=because,
        tables=[length_table(run, points), rate_table(run, points)],
        frame=points.assign(**{**config_columns(run), "source": "modeled"}),
        plots=[
            Plot(
                "Both ledgers over prompt length",
                "Modeled. Dashed: the win, what a request saves without prefill beside its decode. Lines: the bill at "
                "each link rate. Splitting pays where the bill is below the win.",
                lambda figure: draw_ledgers(figure, points),
            ),
            Plot(
                "Break-even link rate",
                "Modeled. The rate at which bill and win are equal, by prompt length; dotted: the rates of the sweep.",
                lambda figure: draw_breakeven(figure, points),
            ),
        ],
        details=[point_table(run, points)],
    )


def length_table(run: Run, points: pd.DataFrame) -> Table:
    """One row per length, the verdict at every rate."""
    rates = sorted(points["rate_gbps"].unique())
    rows = []
    for length, chosen in points.groupby("input_len"):
        first = chosen.iloc[0]
        answers = chosen.set_index("rate_gbps")["verdict"]
        cells = [SHORT.get(answers.get(rate, ""), "") for rate in rates]
        size = format_bytes(float(first["kv_bytes"]))
        times = number(float(first["prefill_s"]), "s"), number(float(first["win_s"]), "s")
        rows.append((str(length), size, *times, f"{digits(float(first['breakeven_gbps']))} Gb/s", *cells))
    columns = ("input tokens", "KV", "prefill", "win", "break-even", *(f"{rate:g} Gb/s" for rate in rates))
    model = str(points["model"].iloc[0])
    notes = [
        f"Model {model}, {points['output_len'].iloc[0]} output tokens. Cells: whether to split at that link rate.",
        LEGEND,
    ]
    return Table(titled("Verdict per length and link rate", run.labels), columns, rows, notes)


def rate_table(run: Run, points: pd.DataFrame) -> Table:
    """The penalty, exposed transfer over prefill, at every length and rate."""
    wide = points.pivot(index="input_len", columns="rate_gbps", values="penalty_ratio")
    cells = zip(wide.index, wide.to_numpy(), strict=True)
    rows = [(str(length), *(number(float(value), "share") for value in row)) for length, row in cells]
    columns = ("input tokens", *(f"{rate:g} Gb/s" for rate in wide.columns))
    note = "Exposed transfer over prefill: the share by which TTFT at the decode rank grows."
    return Table(titled("Penalty ratio", run.labels), columns, rows, [note])


def point_table(run: Run, points: pd.DataFrame) -> Table:
    columns = (
        "input tokens",
        "Gb/s",
        "split?",
        "transfer",
        "exposed",
        "penalty",
        "win",
        "net",
        "break-even tokens",
        "overlap needed",
    )
    rows = [
        (
            str(point["input_len"]),
            f"{point['rate_gbps']:g}",
            str(point["verdict"]),
            *(number(point[name], "s") for name in ("transfer_s", "exposed_transfer_s")),
            number(point["penalty_ratio"], "share"),
            *(number(point[name], "s") for name in ("win_s", "net_s")),
            number(point["breakeven_output_tokens"], "tokens"),
            number(point["overlap_needed"], "share"),
        )
        for point in points.to_dict("records")
    ]
    return Table(titled("Every cell", run.labels), columns, rows, num_left=3)


def draw_ledgers(figure: Figure, points: pd.DataFrame) -> None:
    axes = figure.add_subplot()
    looks = list(zip(SERIES, MARKERS, strict=True)) * 4
    for (rate, chosen), (colour, mark) in zip(points.groupby("rate_gbps"), looks, strict=False):
        label = f"bill, {rate:g} Gb/s"
        axes.plot(chosen["input_len"], chosen["exposed_transfer_s"], f"{mark}-", color=colour, ms=4, label=label)
    win = points.drop_duplicates("input_len").sort_values("input_len")
    axes.plot(win["input_len"], win["win_s"], "--", color=INK, linewidth=2.2, label="win")
    _length_axis(figure, points)
    axes.set(yscale="log", ylabel="per request")
    seconds_axis(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))


def draw_breakeven(figure: Figure, points: pd.DataFrame) -> None:
    axes = figure.add_subplot()
    chosen = points.drop_duplicates("input_len").sort_values("input_len")
    axes.plot(chosen["input_len"], chosen["breakeven_gbps"], "o-", color=SERIES[0], markersize=5)
    for rate in sorted(points["rate_gbps"].unique()):
        axes.axhline(rate, color=MUTED, linestyle=":", linewidth=1)
    _length_axis(figure, points)
    axes.set(yscale="log", ylabel="Gb/s")
    axes.yaxis.set_major_formatter("{x:g}")


def _length_axis(figure: Figure, points: pd.DataFrame) -> None:
    axes = figure.axes[0]
    lengths = sorted(points["input_len"].unique())
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("input tokens")


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("economics", __doc__ or ""), ["economics"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
