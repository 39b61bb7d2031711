"""The rivals of a comparison, side by side: what each colocated arm was set to and how it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.format import interval, number
from analysis.ledger import OVERALL, Comparison
from analysis.load import Run
from analysis.results import Table, titled
from xpyd.records import COLOCATED, COLOCATED_TUNED, DISAGGREGATED

NAMES = {COLOCATED: "configured", COLOCATED_TUNED: "tuned"}
SHOWN = ("goodput_rps", "itl_s p99", "ttft_s p99", "e2e_s mean")
UNITS = ("1/s", "s", "s", "s")


def rivals_table(comparison: Comparison) -> Table:
    """One row per colocated arm: its scheduler, its figures, what it saves end to end against the configured one."""
    run = comparison.run
    rows = []
    for arm in comparison.rivals:
        sides = comparison.sides_of(OVERALL, arm, DISAGGREGATED)
        settings = scheduler_of(run, arm)
        figures = (number(float(sides.colocated[name].mean()), unit) for name, unit in zip(SHOWN, UNITS, strict=True))
        used = "in the ledger" if arm == comparison.rival else ""
        words = [str(settings.get(key, "")) for key in ("policy", "max_num_batched_tokens", "max_num_seqs")]
        net = comparison.net_against(arm, DISAGGREGATED)
        rows.append((NAMES[arm], *words, *figures, interval(net, "s"), used))
    columns = ("rival", "policy", "chunk tokens", "batch", "goodput", "itl p99", "ttft p99", "e2e mean")
    return Table(
        titled("Colocated rivals, measured", run.labels),
        (*columns, "splitting saves", "held against"),
        rows,
        [*_notes(comparison), "Splitting saves: mean end-to-end seconds per request, against this rival."],
        num_left=2,
    )


def scheduler_of(run: Run, arm: str) -> Mapping[str, Any]:
    """The scheduler settings of a colocated arm, as frozen in the run's configuration."""
    if arm == COLOCATED:
        return dict(run.config.get("scheduler", {}))
    return dict(run.config["rival"]["scheduler"])


def _notes(comparison: Comparison) -> list[str]:
    if comparison.rivals == [COLOCATED]:
        if (comparison.run.config.get("rival") or {}).get("use") == "tuned":
            return ["The configured settings are the tuned ones: tuning found nothing better."]
        return [
            "NOT TUNED: this rival has the configured chunk size. python -m experiments.tune_colocated with the same "
            "options finds a better one, which compare then plays as a second rival."
        ]
    tuned = comparison.net_against(COLOCATED, COLOCATED_TUNED)
    notes = [
        f"Tuning saves {interval(tuned, 's')} end to end (negative: it costs). The ledger takes the rival that is "
        "faster end to end."
    ]
    if not comparison.run.config["rival"].get("made_for"):
        notes.append("The tuned rival carries no fingerprint: whether it was tuned on this workload is not known.")
    return notes
