"""Held-out cells: real comparisons against a break-even map that was frozen before them, and the simulator's errors.

python -m analysis.held_out runs/break_even/RUN runs/compare/RUN runs/compare/OTHER
python -m analysis.held_out runs/break_even/NAME-* runs/compare/NAME-*

Each run is held against the last map that was frozen before it and has its cell. Refuses a map that was changed after
it was frozen, a run that is older than every map, and one that differs from what the maps hold for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import command
from analysis.break_even import FILE, Mapped, mapped, read_map
from analysis.format import digits, interval, number
from analysis.intervals import bootstrap_mean
from analysis.ledger import OVERALL, Comparison, Sides
from analysis.load import Run, RunError, flat_config, load_run, read_predicted, setting
from analysis.machine_speed import colocated_slowness, first_slowness, step_table
from analysis.render import FORMATS
from analysis.results import Results, Table, titled
from analysis.validate import Scored, error_frame, error_tables
from xpyd.economics.break_even import UNDECIDED, Cell, answer
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

    content: Mapping[str, Any]  # of the frozen map
    cell: Mapping[str, Any]  # of it
    run: Run
    sides: Sides
    saved: Interval
    number: int = 1  # of the runs of its cell, in the order that they began
    earlier: Sides | None = None  # of the run of its cell before this one

    @property
    def mapped(self) -> Mapped:
        return mapped(self.cell)

    @property
    def answer(self) -> str:
        return answer(self.saved)

    @property
    def placement(self) -> str:
        """``1P1D``; empty where the map does not say."""
        counts = self.content["conditions"].get("placement", {})
        return "{num_prefill}P{num_decode}D".format(**counts) if counts else ""

    @property
    def name(self) -> str:
        again = f", run {self.number}" if self.number > 1 else ""
        return f"{self.placement} {self.mapped.cell.name}{again}".strip()

    @property
    def scored(self) -> Scored:
        costs = self.content["costs"]
        where = {"placement": self.placement, **{axis: self.cell[axis] for axis in AXES}}
        return Scored(
            name=self.name,
            where=where,
            figures=self.cell["figures"],
            sides=self.sides,
            run=self.run,
            costs=costs,
            ranges=self.cell.get("ranges", {}),
            off=(self.content.get("drift") or {}).get("off", 0.0),
            slowness=colocated_slowness(self.run, costs),
            first_slowness=first_slowness(self.run, costs),
            earlier=self.earlier,
        )

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
        calibration = read_predicted(self.run.paths[0]).get("calibration", {})
        seen = calibration.get("link", {}).get("model", {}).get("bytes_per_s")
        return float("nan") if seen is None else bytes_per_s_to_gbps(float(seen))


def hold(maps: Mapping[Path, Mapping[str, Any]], run: Run) -> Held:
    """One run against its cell of the last map before it. Raises RunError where it says nothing of any of them."""
    command.check_experiment(run, ["compare"])
    refusals = []
    for path, content in sorted(maps.items(), key=lambda each: str(each[1]["written_at"]), reverse=True):
        try:
            return hold_against(path, content, run)
        except RunError as error:
            refusals.append(str(error))
    more = f" (and {len(refusals) - 1} other maps say nothing of it either)" if len(refusals) > 1 else ""
    raise RunError(refusals[0] + more)


def hold_against(path: Path, content: Mapping[str, Any], run: Run) -> Held:
    """One run against its cell of the map at ``path``. Raises RunError where the run says nothing of the map."""
    where = run.paths[0]
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
    return Held(content, cell, run, sides, bootstrap_mean(sides.ledgers()[f"{content['criterion']}_s"]))


def analyse(maps: Mapping[Path, Mapping[str, Any]], runs: Sequence[Run]) -> Results:
    """All runs against their maps. Raises RunError, see ``hold``."""
    held = numbered(hold(maps, run) for run in runs)
    scored = [each.scored for each in held]
    labels = list(dict.fromkeys(label for run in runs for label in run.labels))
    errors = error_frame(scored)
    counts = {outcome: [each for each in held if each.outcome == outcome] for outcome in (AGREES, MISSED)}
    decided = len(counts[AGREES]) + len(counts[MISSED])
    missed = "; ".join(each.name for each in counts[MISSED])
    apart = ", ".join(f"{sum(each.outcome == outcome for each in held)} {outcome}" for outcome in (MAP_OPEN, RUN_OPEN))
    outcomes = pd.DataFrame(
        {"cell": [each.name for each in held]}
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
        because=f"Misclassified: {missed or 'none'}. {_frozen_when(list(maps.values()))}",
        tables=[outcome_table(held, labels), *error_tables(errors, labels), step_table(scored, labels)],
        frame=errors.merge(outcomes, on="cell"),
    )


def numbered(held: Iterable[Held]) -> list[Held]:
    """By placement and cell; runs of the same cell in the order that they began, and told apart."""

    def cell_of(each: Held) -> tuple[str, Cell]:
        return each.placement, each.mapped.cell

    ordered = sorted(held, key=lambda each: (cell_of(each), str(each.run.environment["started_at"])))
    found: list[Held] = []
    for _, own in groupby(ordered, cell_of):
        earlier = None
        for index, each in enumerate(own):
            found.append(replace(each, number=index + 1, earlier=earlier))
            earlier = each.sides
    return found


def _frozen_when(contents: Sequence[Mapping[str, Any]]) -> str:
    """When, and what each map hashes to."""
    times = sorted(content["written_at"][:19] for content in contents)
    hashes = ", ".join(content[HASH][:12] for content in contents)
    when = times[0] if len(times) == 1 else f"{times[0]} to {times[-1]}, each before its own runs"
    return f"{len(times)} map{'s' * (len(times) > 1)} frozen {when}, {HASH} {hashes}."


def outcome_table(held: Sequence[Held], labels: Sequence[str]) -> Table:
    rows = [
        (
            each.name,
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
        paths = [options.map, *options.runs]
        maps = {path: read_map(path) for path in paths if is_map(path)}
        runs = [load_run(path) for path in paths if path not in maps]
        if not maps or not runs:
            raise RunError(f"{len(maps)} maps and {len(runs)} compare runs; give at least one of each")
        command.write([analyse(maps, runs)], options)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return command.USER_ERROR
    return 0


def is_map(path: Path) -> bool:
    """A break_even run folder, or its file."""
    return path.is_file() or (path / FILE).exists()


def _parser() -> argparse.ArgumentParser:
    made = command.bare_parser("held_out", __doc__)
    made.add_argument("map", type=Path, metavar="MAP", help="a break_even run folder, or its prediction.json")
    made.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="compare runs younger than the map; more maps")
    made.add_argument("--format", choices=(*FORMATS, command.PARQUET), default="terminal", help="how to print")
    made.add_argument("--out", type=Path, metavar="FILE", help="write to FILE instead of the terminal")
    return made


if __name__ == "__main__":
    sys.exit(main())
