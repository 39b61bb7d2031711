"""What of a transfer is exposed, by mode: its share of prefill, against the model's floor and the literature.

python -m analysis.handoff runs/handoff/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import interval, interval_note, number, sentence
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.requests import request_frame
from analysis.results import Plot, Results, Table, titled
from analysis.style import ACCENT, SERIES
from analysis.tables import config_columns
from analysis.tokens import KEY
from xpyd import metrics
from xpyd.economics.ledger import length_class
from xpyd.economics.verdict import Interval

MODES = ("whole", "layerwise", "chunkwise")
TARGET_SHARE = 0.03  # of prefill: what layer by layer is to stay under, where the wire is faster than the prefill
LITERATURE = "The literature's shares of prefill: 1 to 3 % layer by layer, 20 to 30 % whole."


@dataclass(frozen=True)
class ModeBill:
    """One mode in one direction: medians over hand-offs, and the exposed share by repeat."""

    direction: str
    mode: str
    num_handoffs: int
    num_pieces: float
    num_staged: int
    prefill_s: float
    transfer_s: float
    exposed_s: float
    share: Interval  # mean over repeats of the repeat's median exposed / prefill
    admission_s: float
    floor_s: float  # nan where the run has no prediction
    floor_share: float  # of the measured prefill

    @property
    def name(self) -> str:
        return f"{self.direction} {self.mode}"


def analyse(run: Run) -> Results:
    """Raises RunError where nothing was handed off."""
    bills = mode_bills(run)
    if not bills:
        raise RunError(f"{run.paths[0]}: no KV was handed off; let the run go on, or measure again")
    choices = coalescing_table(run)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=_answer(bills),
        because=sentence("exposed share of prefill: " + _told(bills)),
        tables=[bill_table(run, bills), *([choices] if choices is not None else [])],
        frame=tidy_bills(run, bills),
        plots=[
            Plot(
                "Exposed transfer as a share of prefill",
                "Bars: measured, mean over repeats of medians. Marks: the model's floor, the last piece over the link. "
                f"Line: {number(TARGET_SHARE, 'share')}.",
                lambda figure: draw_shares(figure, bills),
            )
        ],
    )


def mode_bills(run: Run) -> list[ModeBill]:
    """Every direction and mode that moved something, in the order of ``MODES``."""
    moved = run.tables["transfers"][[*KEY, "direction", "mode", "num_pieces", "staged"]]
    frame = request_frame(run).merge(moved, on=KEY)
    frame["share"] = metrics.penalty_ratio(frame["exposed_transfer_s"], frame["prefill_s"])
    groups = dict(iter(frame.groupby(["direction", "mode"])))
    return [
        _bill(run, direction, mode, groups[direction, mode])
        for direction in ("pull", "push")
        for mode in MODES
        if (direction, mode) in groups
    ]


def _bill(run: Run, direction: str, mode: str, own: pd.DataFrame) -> ModeBill:
    length = length_class(int(own["input_len"].median()))
    floor_s = run.predicted.get(length, {}).get(f"{direction} {mode}", {}).get("floor_s", float("nan"))
    prefill_s = float(own["prefill_s"].median())
    return ModeBill(
        direction=direction,
        mode=mode,
        num_handoffs=len(own),
        num_pieces=float(own["num_pieces"].median()),
        num_staged=int(own["staged"].sum()),
        prefill_s=prefill_s,
        transfer_s=float(own["transfer_s"].median()),
        exposed_s=float(own["exposed_transfer_s"].median()),
        share=bootstrap_mean(own.groupby("pair")["share"].median()),
        admission_s=float(own["admission_s"].median()),
        floor_s=floor_s,
        floor_share=floor_s / prefill_s,
    )


def bill_table(run: Run, bills: Sequence[ModeBill]) -> Table:
    rows = [
        (
            bill.name + (" staged" if bill.num_staged == bill.num_handoffs else ""),
            number(bill.prefill_s, "s"),
            number(bill.transfer_s, "s"),
            number(bill.exposed_s, "s"),
            interval(bill.share, "share"),
            number(bill.floor_s, "s"),
            number(bill.floor_share, "share"),
        )
        for bill in bills
    ]
    columns = ("mode", "prefill", "transfer", "exposed", "of prefill", "floor", "of prefill")
    notes = [
        f"Medians over {bills[0].num_handoffs} hand-offs of each mode.",
        "Exposed: from the prompt's end to its last byte landed. Floor (modeled): the last part over the fitted link; "
        "KV is final before the rest of its layer runs, so that less may be exposed.",
        f"{LITERATURE} Target here: at most {number(TARGET_SHARE, 'share')} layer by layer.",
        interval_note(min(_num_repeats(run, bill) for bill in bills), "repeats"),
    ]
    return Table(titled("Exposed transfer by mode, measured", run.labels), columns, rows, notes)


def coalescing_table(run: Run) -> Table | None:
    """The choices of ``transfer.staging=auto``: medians of those alike, one told in full; None where none was made."""
    made = run.tables["coalescings"]
    if made.empty:
        return None
    chosen = made.merge(request_frame(run)[[*KEY, "transfer_s"]], on=KEY, how="left").sort_values("payload_bytes")
    rows, notes = [], []
    for staged, own in chosen.groupby("staged"):
        way = "staged" if staged else "direct"
        middle = own.iloc[len(own) // 2]
        rows.append(
            (
                way,
                str(len(own)),
                number(float(own["payload_bytes"].median()), "bytes"),
                f"{own['num_direct_pieces'].median():g}",
                f"{own['num_staged_pieces'].median():g}",
                number(float(own["direct_s"].median()), "s"),
                number(float(own["staged_s"].median()), "s"),
                number(float(own["transfer_s"].median()), "s"),
            )
        )
        size = number(float(middle["payload_bytes"]), "bytes")
        notes.append(f"{way.capitalize()}, such as request {middle['request_id']} ({size}): {middle['reason']}.")
    columns = ("chosen", "hand-offs", "payload", "pieces direct", "staged", "predicted direct", "staged", "measured")
    notes.append("Predicted from costs measured at the start of the run; copies are not overlapped with the wire.")
    return Table(titled("Direct or staged, by predicted cost", run.labels), columns, rows, notes)


def draw_shares(figure: Figure, bills: Sequence[ModeBill]) -> None:
    axes = figure.add_subplot()
    labels = [f"{bill.direction}\n{bill.mode}" for bill in bills]
    colours = [SERIES[0] if bill.direction == "pull" else SERIES[1] for bill in bills]
    axes.bar(labels, [100 * bill.share.mid for bill in bills], color=colours, width=0.6)
    axes.plot(labels, [100 * bill.floor_share for bill in bills], "_", color=ACCENT, markersize=22, markeredgewidth=2)
    axes.axhline(100 * TARGET_SHARE, color=ACCENT, linewidth=0.8, linestyle=":")
    axes.set_ylabel("exposed, % of prefill")


def tidy_bills(run: Run, bills: Sequence[ModeBill]) -> pd.DataFrame:
    rows = [
        {
            "direction": bill.direction,
            "transfer_mode": bill.mode,
            "num_handoffs": bill.num_handoffs,
            "num_pieces": bill.num_pieces,
            "num_staged": bill.num_staged,
            "prefill_s": bill.prefill_s,
            "transfer_s": bill.transfer_s,
            "exposed_transfer_s": bill.exposed_s,
            "penalty_ratio": bill.share.mid,
            "penalty_ratio_low": bill.share.low,
            "penalty_ratio_high": bill.share.high,
            "floor_s": bill.floor_s,
            "admission_s": bill.admission_s,
        }
        for bill in bills
    ]
    return pd.DataFrame(rows).assign(**config_columns(run))


def _answer(bills: Sequence[ModeBill]) -> str:
    """The layerwise bill against its target; where none was measured, the smallest."""
    best = min(bills, key=lambda bill: bill.share.mid)
    layerwise = [bill for bill in bills if bill.mode == "layerwise"]
    if not layerwise:
        return f"{best.name.capitalize()} exposes {number(best.share.mid, 'share')} of prefill."
    worst = max(layerwise, key=lambda bill: bill.share.mid)
    found = "within" if worst.share.mid <= TARGET_SHARE else "above"
    share, target = number(worst.share.mid, "share"), number(TARGET_SHARE, "share")
    return f"Layer by layer, {share} of prefill is exposed: {found} the target of {target}."


def _told(bills: Sequence[ModeBill]) -> str:
    return ", ".join(f"{bill.name} {number(bill.share.mid, 'share')}" for bill in bills)


def _num_repeats(run: Run, bill: ModeBill) -> int:
    moved = run.tables["transfers"]
    own = moved[(moved["direction"] == bill.direction) & (moved["mode"] == bill.mode)]
    return int(run.tables["requests"].merge(own[KEY], on=KEY)["pair"].nunique())


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    made = command.parser("handoff", __doc__ or "")
    return command.main(made, ["handoff", "serve", "compare"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
