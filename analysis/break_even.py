"""Where splitting pays: the map of a break_even run, over link and prompt length for every rate and output length.

python -m analysis.break_even runs/break_even/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log
from pathlib import Path
from typing import Any

from analysis import command
from analysis.break_even_plot import draw_map, height_of
from analysis.format import digits, interval, number
from analysis.load import Run, RunError
from analysis.results import Plot, Results, Table, titled
from analysis.tables import config_columns, placement_name
from xpyd.economics.break_even import SPLIT, STAY, UNDECIDED, Cell, judge
from xpyd.economics.frozen import HASH, FrozenError, read_sealed
from xpyd.economics.ledger import ArmTimes, make_ledger
from xpyd.economics.verdict import Interval
from xpyd.records import COLOCATED, DISAGGREGATED

FILE = "prediction.json"
SIMULATOR = "simulator"
SHORT = {SPLIT: "split", STAY: "no", UNDECIDED: "?"}
STAGES = tuple(ArmTimes.__dataclass_fields__)


@dataclass(frozen=True)
class Mapped:
    """One cell as predicted: its class, and the seconds per request that splitting saves there."""

    cell: Cell
    answer: str
    saved: Interval
    win_s: float
    bill_s: float
    margin_s: float


def analyse(run: Run) -> Results:
    """Raises RunError where no cell was played, and for a map that was changed after it was frozen."""
    content = frozen(run)
    cells = [mapped(each) for each in content["cells"]] if content else _from_rows(run)
    if not cells:
        raise RunError(f"{run.paths[0]}: no cell was played; let the run go on with run.resume=true, or start it anew")
    counts = {answer: sum(each.answer == answer for each in cells) for answer in SHORT}
    pays = f"splitting pays in {counts[SPLIT]} of {len(cells)} cells, does not in {counts[STAY]}"
    rows = run.tables["break_even"].assign(**config_columns(run), source="modeled")
    where = (
        f"Frozen {content['written_at'][:19]}, {HASH} {content[HASH][:12]}."
        if content
        else "Not frozen: not all played."
    )
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"Modeled: {pays}, and {counts[UNDECIDED]} are undecided.",
        because=f"{_criterion(run)} {where}",
        tables=[map_table(run, cells)],
        frame=rows,
        plots=[
            Plot(
                "Where splitting pays",
                "Modeled. Line: on its two sides splitting saves and costs time. Hatched: undecided, as the interval "
                "over block pairs or the simulator's known error covers zero.",
                lambda figure: draw_map(figure, cells),
                height_of([each.cell for each in cells]),
            )
        ],
        details=[cell_table(run, cells)],
        tone=_tone(counts, len(cells)),
    )


def frozen(run: Run) -> Mapping[str, Any] | None:
    """The frozen map of a run; None where it did not come that far. Raises RunError for a changed one."""
    path = run.paths[0] / FILE
    if len(run.paths) > 1:
        raise RunError(f"{run.paths[1]}: maps are not pooled; give one run")
    return read_map(path) if path.exists() else None


def read_map(path: Path) -> Mapping[str, Any]:
    """A frozen map by its file or its run folder. Raises RunError."""
    try:
        return read_sealed(path / FILE if path.is_dir() else path)
    except FrozenError as error:
        raise RunError(str(error)) from None


def mapped(cell: Mapping[str, Any]) -> Mapped:
    """A cell of a frozen map."""
    where = Cell(*(cell[name] for name in Cell.__dataclass_fields__))
    found = (float(cell[name]) for name in ("win_s", "bill_s", "margin_s"))
    return Mapped(where, str(cell["answer"]), Interval(**cell["saved"]), *found)


def break_even_gbps(cells: Sequence[Mapped]) -> str:
    """The link at which the saving of one load changes its sign, between the links of the map; in words."""
    ordered = sorted(cells, key=lambda each: each.cell.link_gbps)
    if ordered[0].saved.mid > 0:
        return f"below {ordered[0].cell.link_gbps:g} Gb/s"
    for slow, fast in pairwise(ordered):
        if fast.saved.mid > 0:
            share = -slow.saved.mid / (fast.saved.mid - slow.saved.mid)
            gbps = exp((1 - share) * log(slow.cell.link_gbps) + share * log(fast.cell.link_gbps))
            return f"about {digits(gbps)} Gb/s"
    return f"not up to {ordered[-1].cell.link_gbps:g} Gb/s"


def map_table(run: Run, cells: Sequence[Mapped]) -> Table:
    """One row per load, the class at every link."""
    links = sorted({each.cell.link_gbps for each in cells})
    loads: dict[tuple[float, ...], dict[float, Mapped]] = {}
    for each in sorted(cells, key=lambda each: each.cell):
        load = (each.cell.output_len, each.cell.rate_rps, each.cell.input_len)
        loads.setdefault(load, {})[each.cell.link_gbps] = each
    rows = [
        (
            *(f"{value:g}" for value in load),
            break_even_gbps(list(own.values())),
            *(SHORT[own[link].answer] if link in own else "" for link in links),
        )
        for load, own in loads.items()
    ]
    columns = ("output tokens", "requests /s", "input tokens", "break-even link", *(f"{link:g} Gb/s" for link in links))
    model, placement = run.config["model"]["name"], placement_name(run.config["placement"])
    notes = [
        f"Model {model}, {placement} against as many colocated ranks. split: splitting pays; no: it does not; "
        "?: undecided.",
        "Break-even link: interpolated over its logarithm, where win and bill are equal; it has no interval.",
    ]
    return Table(titled("Classes", run.labels), columns, rows, notes, num_left=4 + len(links))


def cell_table(run: Run, cells: Sequence[Mapped]) -> Table:
    rows = [
        (
            each.cell.name,
            each.answer,
            interval(each.saved, "s"),
            *(number(value, "s") for value in (each.win_s, each.bill_s, each.margin_s)),
        )
        for each in sorted(cells, key=lambda each: each.cell)
    ]
    columns = ("cell", "class", "saved per request", "win", "bill", "known error")
    notes = [_criterion(run), "[low, high]: 95 % interval over block pairs (Student's t)."]
    return Table(titled("Every cell", run.labels), columns, rows, notes, num_left=2)


def _from_rows(run: Run) -> list[Mapped]:
    """The cells that a run has played so far."""
    settings = run.config["break_even"]
    rows = run.tables["break_even"]
    found = []
    for _, own in rows[rows["predictor"] == SIMULATOR].groupby(list(Cell.__dataclass_fields__), sort=True):
        arms = {arm: own[own["arm"] == arm].sort_values("pair")[list(STAGES)] for arm in (COLOCATED, DISAGGREGATED)}
        pairs = zip(*(arms[arm].itertuples(index=False, name=None) for arm in arms), strict=True)
        ledgers = [make_ledger(ArmTimes(*stays), ArmTimes(*moves)) for stays, moves in pairs]
        judged = judge(ledgers, settings["criterion"], float(settings["band"]))
        first = own.iloc[0]
        cell = Cell(
            int(first["output_len"]), float(first["rate_rps"]), int(first["input_len"]), float(first["link_gbps"])
        )
        found.append(Mapped(cell, judged.answer, judged.saved, judged.win_s, judged.bill_s, judged.margin_s))
    return found


def _criterion(run: Run) -> str:
    settings = run.config["break_even"]
    what = "win minus bill" if settings["criterion"] == "ledger" else "seconds end to end"
    band = number(float(settings["band"]), "share")
    return f"By {what}; undecided within an error of {band} of its largest part."


def _tone(counts: Mapping[str, int], num_cells: int) -> Any:
    if counts[SPLIT] == num_cells:
        return "split"
    return "stay" if counts[STAY] == num_cells else "open"


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("break_even", __doc__ or ""), ["break_even"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
