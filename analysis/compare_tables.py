"""The tables of a comparison: verdict per length class, ledger, latency, output invariance; and the tidy rows."""

from __future__ import annotations

import pandas as pd

from analysis.format import interval, interval_note, null_finding, number, percent, sentence
from analysis.intervals import covers_zero
from analysis.invariance import Invariance
from analysis.ledger import OVERALL, Comparison, Line
from analysis.load import Run
from analysis.results import Table, found_word, titled
from analysis.statistics import instance_of
from analysis.tables import codec_of, config_columns
from xpyd.records import DISAGGREGATED, NULL
from xpyd.units import format_s

LINE_NAMES = {
    "queue_s": "queue",
    "prefill_s": "prefill",
    "exposed_transfer_s": "exposed transfer",
    "admission_s": "admission wait",
    "decode_s": "decode",
    "bill_s": "bill (transfer)",
    "win_s": "win (interference)",
    "ledger_s": "ledger: win - bill",
    "pools_s": "pools (queue, prefill)",
    "net_s": "net: ledger + pools",
}
SECONDS = "Bill: seconds that splitting costs per request; win, ledger, pools, net: that it saves (negative: it loses)."
STAGES = "Stages: what splitting changes, disaggregated - colocated."


def verdict_table(comparison: Comparison) -> Table:
    rows, notes = [], []
    for found in comparison.verdicts:
        cells = (interval(found.lines[name].measured, "s") for name in ("bill_s", "win_s", "ledger_s", "net_s"))
        num_pairs = found.lines["net_s"].num_pairs
        rows.append((found.length, found.verdict.answer.value, *cells, str(found.num_requests), str(num_pairs)))
        notes.append(f"{found.length}: {sentence(found.verdict.because)} {found.pools_note}".strip())
    columns = ("input tokens", "split?", "bill", "win", "win - bill", "net", "requests", "pairs")
    title = titled("Verdict per length class, measured", comparison.run.labels)
    return Table(
        title, columns, rows, [SECONDS + " " + _pairs_note(comparison), *notes, null_note(comparison)], num_left=2
    )


def ledger_table(comparison: Comparison, length: str) -> Table:
    lines = [line for line in comparison.lines if line.length == length and line.section != "metric"]
    rows = [
        (
            LINE_NAMES[line.quantity],
            number(line.colocated, "s"),
            number(line.disaggregated, "s"),
            interval(line.measured, "s"),
            number(line.modeled, "s"),
            percent(line.error_pct),
            null_finding(line.null, "s"),
        )
        for line in lines
    ]
    columns = (
        "line",
        comparison.rival,
        "disaggregated",
        found_word(comparison.run.labels),
        "modeled",
        "model error",
        "null control",
    )
    title = titled(f"Ledger, {_words(length)}", comparison.run.labels)
    notes = [f"{STAGES} {SECONDS}", _pairs_note(comparison), _not_modeled(comparison.run)]
    return Table(title, columns, rows, [note for note in notes if note])


def _not_modeled(run: Run) -> str:
    """Why a real run has no modeled column, where the configuration tells."""
    if run.predicted or found_word(run.labels) == "simulated":
        return ""
    scheduler, rival = run.config.get("scheduler", {}), (run.config.get("rival") or {}).get("scheduler") or {}
    if "static" in (scheduler.get("policy"), rival.get("policy")):
        return "Modeled: nothing; the cost model knows no wait for a static batch to end."
    if (run.config.get("speculation") or {}).get("draft", "none") != "none":
        return "Modeled: nothing; the cost model knows steps of one token a sequence."
    if any(instance_of(run.config["placement"], role)[1] > 1 for role in ("prefill", "decode", "colocated")):
        return "Modeled: nothing; the cost model knows instances of one rank."
    return ""


def metric_table(comparison: Comparison, length: str) -> Table:
    lines = [line for line in comparison.lines if line.length == length and line.section == "metric"]
    columns = ("metric", comparison.rival, "disaggregated", "change by splitting", "null control")
    title = titled(f"Latency and goodput, {_words(length)}, measured", comparison.run.labels)
    slo = comparison.run.config["slo"]
    note = (
        f"Means over block pairs of each block's figure. Limits: ttft_s {format_s(slo['ttft_s'])}, "
        f"every gap "
        f"{format_s(slo['itl_s'])}; failed and unfinished requests miss them."
    )
    return Table(title, columns, [_metric_row(line) for line in lines], [note])


def invariance_table(run: Run, found: list[Invariance]) -> Table:
    rows = [
        (
            f"{f.arms[1]} against {f.arms[0]}",
            f.finding,
            *map(str, (f.num_compared, f.num_equal, f.num_rounding, f.num_different)),
        )
        for f in found
    ]
    notes = []
    for f in found:
        for row in f.divergences[~f.divergences["within_rounding"]].head(3).itertuples():
            where = f"pair {row.pair} request {row.request_id} from token {row.index}"
            notes.append(f"{f.arms[1]}: differs in {where}, margin {row.margin:.2g}.")
    if codec_of(run) != "none":
        notes.append(
            f"Codec {codec_of(run)} is lossy, so tokens may differ: this is what it costs. For KL and logit errors run "
            "experiments.codecs; whether the hand-off is right shows with codec=none."
        )
    columns = ("same tokens?", "finding", "compared", "equal", "within rounding", "different")
    return Table(titled("Output invariance, measured", run.labels), columns, rows, notes, num_left=2)


def null_note(comparison: Comparison) -> str:
    """One sentence on the null control of the net line over all lengths."""
    null = comparison.verdicts[0].lines["net_s"].null
    covers = covers_zero(null)
    if covers is None:
        return "Null control (the same arm twice): no interval."
    meaning = "covers zero, as it should" if covers else "MISSES ZERO: arms differ by more than what was changed"
    return f"Null control (the same arm twice): net {interval(null, 's')} {meaning}."


def tidy_lines(comparison: Comparison) -> pd.DataFrame:
    """One row per line, numbers as numbers: the CSV."""
    answers = {found.length: found.verdict.answer.value for found in comparison.verdicts}
    return pd.DataFrame(
        {
            **config_columns(comparison.run),
            "length": line.length,
            "section": line.section,
            "quantity": line.quantity,
            "unit": line.unit,
            "num_pairs": line.num_pairs,
            "rival": comparison.rival,
            "colocated": line.colocated,
            "disaggregated": line.disaggregated,
            "measured": line.measured.mid,
            "measured_low": line.measured.low,
            "measured_high": line.measured.high,
            "modeled": line.modeled,
            "error_pct": line.error_pct,
            "null": line.null.mid,
            "null_low": line.null.low,
            "null_high": line.null.high,
            "null_covers_zero": covers_zero(line.null),
            "answer": answers[line.length],
        }
        for line in comparison.lines
    )


def _metric_row(line: Line) -> tuple[str, ...]:
    values = number(line.colocated, line.unit), number(line.disaggregated, line.unit)
    return line.quantity, *values, interval(line.measured, line.unit), null_finding(line.null, line.unit)


def _pairs_note(comparison: Comparison) -> str:
    null = "" if comparison.pairs[NULL] else " No null control in this run."
    return interval_note(len(comparison.pairs[DISAGGREGATED])) + null


def _words(length: str) -> str:
    return "all lengths" if length == OVERALL else f"input tokens {length}"
