"""The findings of a preflight: what is wrong on this cluster, and what to do about it.

python -m analysis.check_cluster runs/check_cluster/20260101-120000-000000
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis import command
from analysis.format import NONE, number, sentence
from analysis.load import Run, RunError
from analysis.results import Results, Table, titled
from analysis.tables import config_columns
from xpyd.units import bytes_per_s_to_gbps


def analyse(run: Run) -> Results:
    """Raises RunError where the run folder holds no findings."""
    path = run.paths[0] / "findings.json"
    if not path.exists():
        raise RunError(f"{run.paths[0]}: no findings.json; the check did not get that far, run it again")
    content = json.loads(path.read_text())
    findings = content["findings"]
    bad = [finding for finding in findings if finding["level"] != "ok"]
    errors, warnings = content["num_errors"], content["num_warnings"]
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"Not ready: {errors} of {len(findings)} findings are errors." if errors else "Ready.",
        because=sentence(f"{errors} errors, {warnings} warnings, {len(findings) - len(bad)} ok"),
        tables=[
            Table(
                titled("Preflight", run.labels),
                ("topic", "level", "check", "found", "to do"),
                [tuple(finding[key] for key in ("topic", "level", "check", "found", "remedy")) for finding in findings],
                num_left=5,
            ),
            *([pair_table(run, content["pairs"])] if content.get("pairs") else []),
        ],
        frame=pd.DataFrame(findings).assign(**config_columns(run)),
        tone="stay" if errors else "open" if bad else "split",
    )


def pair_table(run: Run, pairs: Sequence[Mapping[str, Any]]) -> Table:
    """What each prefill-decode pair did."""
    rows = [
        (
            f"{pair['source']}->{pair['destination']}",
            pair["route"] or NONE,
            NONE if pair["echo_s"] is None else number(pair["echo_s"], "s"),
            NONE if pair["rate_bytes_per_s"] is None else f"{bytes_per_s_to_gbps(pair['rate_bytes_per_s']):.3g}",
        )
        for pair in pairs
    ]
    return Table(titled("Pairs", run.labels), ("pair", "route", "echo", "Gb/s"), rows, num_left=2)


def main(argv: Sequence[str] | None = None) -> int:
    made = command.parser("check_cluster", __doc__ or "")
    return command.main(made, ["check_cluster"], lambda run, options: analyse(run), argv=argv)


if __name__ == "__main__":
    sys.exit(main())
