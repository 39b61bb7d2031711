"""A calibration: every fitted coefficient with its interval, and how well the fits hold.

python -m analysis.calibrate runs/calibrate/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import pandas as pd
import yaml

from analysis import command
from analysis.format import interval, number
from analysis.load import Run, RunError
from analysis.results import Results, Table, titled
from analysis.tables import config_columns
from xpyd.economics.verdict import Interval

FILE = "calibration.yaml"
FACTORS = ("bytes_per_s", "gain_2", "gain_4", "step_factor", "prompt_factor")  # the others are seconds
WORDS = {
    "base_s": "a step, before any token",
    "prefill_token_s": "a prompt token",
    "prefill_pair_s": "a (query, key) pair of a prompt",
    "decode_seq_s": "a decoding sequence",
    "context_token_s": "a token of its context",
    "hidden_s": "of a step, what one with a prompt chunk is spared",
    "alpha_s": "a transfer",
    "gamma_s": "a piece of it",
    "bytes_per_s": "bytes per second",
    "gain_2": "two transfers at once, bandwidth times that of one",
    "gain_4": "four, likewise",
    "step_factor": "a step of a run, times it alone",
    "prompt_factor": "a prompt in it, times it alone",
    "receive_step_s": "a decode step while KV lands",
    "receive_byte_s": "a byte that lands in it",
    "send_step_s": "a prefill step while KV leaves",
    "send_byte_s": "a byte that leaves in it",
    "submit_s": "due, until an idle worker begins",
    "leave_s": "prompt computed, until its KV leaves whole",
    "admit_s": "all KV there, until it decodes",
    "tell_s": "step ended, until the client has its tokens",
}


def analyse(run: Run) -> Results:
    """Raises RunError for pooled runs, and for one without a calibration file."""
    path = run.paths[0] / FILE
    if len(run.paths) > 1 or not path.exists():
        raise RunError(f"{run.paths[0]}: give one run that wrote {FILE}; calibrations are not pooled")
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    rows = [
        {**config_columns(run), "part": part, "coefficient": name, **found}
        for part, own in parts(content).items()
        for name, found in own.items()
    ]
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"Calibrated: {content['conditions']['model']}, {content['conditions']['placement']}.",
        because=f"python -m experiments.simulate simulate.calibration={path}",
        tables=[coefficient_table(run, rows), score_table(run, content)],
        frame=pd.DataFrame(rows),
    )


def parts(content: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """part -> coefficient -> value and interval; what a calibration lacks is left out."""
    engines = {f"engine, {role}": own for role, own in content.get("engine", {}).items()}
    found = {name: content.get(name) or {} for name in ("compute", "link", "moving", "delays")}
    return {"compute": found.pop("compute"), **engines, **found}


def coefficient_table(run: Run, rows: list[dict[str, Any]]) -> Table:
    cells = []
    for row in rows:
        unit = "" if row["coefficient"] in FACTORS else "s"
        found = interval(Interval(row["low"], row["value"], row["high"]), unit)
        cells.append((row["part"], WORDS[row["coefficient"]], found))
    notes = [
        "[low, high]: 95 % interval, a bootstrap over the repeats of every setting.",
        "compute: steps alone. engine: what becomes of them in a run, with a client and idle workers about.",
        "moving: what is added to steps beside a hand-off. delays: what a request waits for messages, with the workers "
        "to itself. A file without them is older, or had no room for a hand-off.",
    ]
    return Table(titled("Fitted costs, measured", run.labels), ("", "cost of", "value"), cells, notes, num_left=2)


def score_table(run: Run, content: dict[str, Any]) -> Table:
    found = {**content["scores"], "interference": content["interference"]}
    rows = [
        (name, str(score["num_points"]), number(score["rms_error"], "share"), number(score["max_error"], "share"))
        for name, score in found.items()
        if score is not None
    ]
    notes = ["Relative errors on the fitted points; interference: steps with a chunk beside decodes, not fitted."]
    return Table(titled("How well the fits hold", run.labels), ("", "points", "rms error", "worst"), rows, notes)


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("calibrate", __doc__ or ""), ["calibrate"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
