"""Held-out cells: real comparisons against a break-even map that was frozen before them, and the simulator's errors.

python -m analysis.held_out runs/break_even/RUN runs/compare/RUN runs/compare/OTHER

Refuses a map that was changed after it was frozen, a run that is older than the map, and one that differs from what
the map holds for.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import command
from analysis.break_even import Mapped, mapped, read_map
from analysis.format import digits, interval, number
from analysis.intervals import bootstrap_mean
from analysis.ledger import OVERALL, Comparison, Sides
from analysis.load import Run, RunError, flat_config, load_run, setting
from analysis.render import FORMATS
from analysis.results import Results, Table, titled
from analysis.validate import error_frame, error_tables, step_table
from xpyd.economics.break_even import UNDECIDED, answer
from xpyd.economics.cost import ComputeModel
from xpyd.economics.frozen import HASH
from xpyd.economics.verdict import Interval
from xpyd.records import COLOCATED
from xpyd.units import bytes_per_s_to_gbps

AGREES, MISSED, MAP_OPEN, RUN_OPEN = "agrees", "misclassified", "undecided by the map", "undecided by the run"
AXES = {
    "link_gbps": "fabric.rate_gbps",
    "input_len": "workload.input_len",
    "rate_rps": "workload.arrival.rate_rps",
    "output_len": "workload.output_len",
}


@dataclass(frozen=True)
class Held:
    """One cell of the map and the run that played it. ``saved``: seconds per request by the map's criterion."""

    cell: Mapping[str, Any]  # of the frozen map
    run: Run
    sides: Sides
    saved: Interval

    @property
    def mapped(self) -> Mapped:
        return mapped(self.cell)

    @property
    def answer(self) -> str:
        return answer(self.saved)

    @property
    def outcome(self) -> str:
        if self.mapped.answer == UNDECIDED:
            return MAP_OPEN
        if self.answer == UNDECIDED:
            return RUN_OPEN
        return AGREES if self.mapped.answer == self.answer else MISSED

    @property
    def seen_gbps(self) -> float:
        """The link as the run measured it before its first request; NaN where it did not."""
        path = self.run.paths[0] / "predicted.json"
        calibration = json.loads(path.read_text()).get("calibration", {}) if path.exists() else {}
        seen = calibration.get("link", {}).get("model", {}).get("bytes_per_s")
        return float("nan") if seen is None else bytes_per_s_to_gbps(float(seen))


def hold(path: Path, content: Mapping[str, Any], run: Run) -> Held:
    """One run against its cell of the map at ``path``. Raises RunError where the run says nothing of the map."""
    where = run.paths[0]
    command.check_experiment(run, ["compare"])
    started = str(run.environment.get("started_at", ""))
    if not started or datetime.fromisoformat(started) <= datetime.fromisoformat(content["written_at"]):
        raise RunError(
            f"{where}: began {started or 'at an unknown time'}, and the map {path} was frozen {content['written_at']}, "
            "so it is not held out; measure again"
        )
    for key, planned in flat_config(content["conditions"]):
        if (found := setting(run, key)) != planned:
            raise RunError(f"{where}: {key}={found!r}, the map {path} holds for {planned!r}; map anew, or measure anew")
    point = {axis: setting(run, key) for axis, key in AXES.items()}
    cell = next((cell for cell in content["cells"] if all(cell[axis] == point[axis] for axis in AXES)), None)
    if cell is None:
        asked = ", ".join(f"{AXES[axis]}={value!r}" for axis, value in point.items())
        raise RunError(f"{where}: {asked} is no cell of the map {path}; map anew with it, or measure one of its cells")
    comparison = Comparison(run)
    if comparison.rivals != [COLOCATED]:
        raise RunError(f"{where}: plays a tuned rival, which the map {path} knows nothing of; set rival=configured")
    sides = comparison.sides(OVERALL)
    return Held(cell, run, sides, bootstrap_mean(sides.ledgers()[f"{content['criterion']}_s"]))


def analyse(path: Path, content: Mapping[str, Any], runs: Sequence[Run]) -> Results:
    """All runs against the map. Raises RunError, see ``hold``."""
    held = sorted((hold(path, content, run) for run in runs), key=lambda each: each.mapped.cell)
    labels = list(dict.fromkeys(label for run in runs for label in run.labels))
    errors = error_frame([(each.cell, each.sides) for each in held])
    counts = {outcome: [each for each in held if each.outcome == outcome] for outcome in (AGREES, MISSED)}
    decided = len(counts[AGREES]) + len(counts[MISSED])
    missed = "; ".join(each.mapped.cell.name for each in counts[MISSED])
    apart = ", ".join(f"{sum(each.outcome == outcome for each in held)} {outcome}" for outcome in (MAP_OPEN, RUN_OPEN))
    frozen_at = content["written_at"][:19]
    steps = step_table([(each.cell, each.run) for each in held], ComputeModel(**content["costs"]["compute"]), labels)
    outcomes = pd.DataFrame(
        {axis: [each.cell[axis] for each in held] for axis in AXES}
        | {
            "predicted_class": [each.mapped.answer for each in held],
            "measured_class": [each.answer for each in held],
            "outcome": [each.outcome for each in held],
        }
    )
    return Results(
        name=f"{len(held)} held-out runs",
        experiment="break_even",
        answer=f"{len(counts[AGREES])} of {decided} decided cells agree; apart from these {apart}.",
        because=f"Misclassified: {missed or 'none'}. Map frozen {frozen_at}, {HASH} {content[HASH][:12]}.",
        tables=[outcome_table(held, labels), *error_tables(errors, labels), steps],
        frame=errors.merge(outcomes, on=list(AXES)),
    )


def outcome_table(held: Sequence[Held], labels: Sequence[str]) -> Table:
    rows = [
        (
            each.mapped.cell.name,
            each.mapped.answer,
            each.answer,
            each.outcome,
            interval(each.mapped.saved, "s"),
            number(each.mapped.margin_s, "s"),
            interval(each.saved, "s"),
            f"{digits(each.seen_gbps)} Gb/s",
        )
        for each in held
    ]
    columns = ("cell", "map", "run", "outcome", "saved, modeled", "known error", "saved, measured", "link seen")
    notes = [
        "Saved: seconds per request, by the map's criterion; known error: of the simulator, by the map's band.",
        "Link seen: bandwidth as each run fitted it before its first request.",
    ]
    return Table(titled("Held-out cells", labels), columns, rows, notes, num_left=4)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    try:
        content = read_map(options.map)
        runs = [load_run(path) for path in options.runs]
        command.write([analyse(options.map, content, runs)], options)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return command.USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    made = command.bare_parser("held_out", __doc__)
    made.add_argument("map", type=Path, metavar="MAP", help="a break_even run folder, or its prediction.json")
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="compare runs that are younger than the map")
    made.add_argument("--format", choices=(*FORMATS, command.PARQUET), default="terminal", help="how to print")
    made.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the terminal")
    return made


if __name__ == "__main__":
    sys.exit(main())
