"""How far predictions are off real runs: signed errors of the simulator, and of what people reckon with instead.

Read by ``analysis.held_out``: every prediction here was frozen before the run that it is held against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.format import NONE, percent
from analysis.ledger import Sides
from analysis.load import Run
from analysis.results import Table, titled
from xpyd.economics.break_even import Cell
from xpyd.economics.cost import ComputeModel
from xpyd.records import COLOCATED, DISAGGREGATED
from xpyd.units import NS_PER_S

SIMULATOR = "simulator"
# Figures of a frozen cell, and what the tables of a run call them.
FIGURES = {
    "ttft_p50_s": "ttft_s p50",
    "itl_p50_s": "itl_s p50",
    "ttft_p99_s": "ttft_s p99",
    "itl_p99_s": "itl_s p99",
    "goodput_rps": "goodput_rps",
}
TARGETS_PCT = {"ttft_p50_s": 10, "itl_p50_s": 10, "ttft_p99_s": 15, "itl_p99_s": 15, "goodput_rps": 10}
NUM_WORST = 5


def error_frame(held: Sequence[tuple[Mapping[str, Any], Sides]]) -> pd.DataFrame:
    """One row per cell, predictor, arm and figure: modeled and measured means over block pairs, and the error.

    ``error_pct`` is signed, in percent of what was measured; NaN where nothing was.
    """
    rows = []
    for cell, sides in held:
        where = {name: cell[name] for name in Cell.__dataclass_fields__}
        measured = {COLOCATED: sides.colocated, DISAGGREGATED: sides.other}
        for predictor, arms in cell["figures"].items():
            for arm, figures in arms.items():
                for figure, column in FIGURES.items():
                    seen = float(measured[arm][column].mean())
                    error = 100 * (figures[figure] - seen) / abs(seen) if seen else np.nan
                    what = {"predictor": predictor, "arm": arm, "figure": figure}
                    rows.append({**where, **what, "modeled": figures[figure], "measured": seen, "error_pct": error})
    return pd.DataFrame(rows)


def error_tables(errors: pd.DataFrame, labels: Sequence[str]) -> list[Table]:
    own = errors[errors["predictor"] == SIMULATOR]
    return [mean_table(errors, labels), cell_table(own, labels), worst_table(own, labels)]


def mean_table(errors: pd.DataFrame, labels: Sequence[str]) -> Table:
    """Mean absolute error over cells: a row per predictor and arm, and the target."""
    rows = []
    for (predictor, arm), own in errors.groupby(["predictor", "arm"], sort=False):
        means = own.groupby("figure")["error_pct"].apply(lambda each: each.abs().mean())
        rows.append((str(predictor), str(arm), *(f"{means[figure]:.0f} %" for figure in FIGURES)))
    rows.append(("target", "", *(f"{TARGETS_PCT[figure]} %" for figure in FIGURES)))
    num_cells = len(errors[list(Cell.__dataclass_fields__)].drop_duplicates())
    notes = [
        f"Over {num_cells} cells, none of them seen by the calibration; quantiles are means over blocks.",
        "bytes over bandwidth: no latency, no descriptors, the nominal rate. free transfer: KV moves in no time. no "
        "interference: prompts never share a rank with decodes. All else is the simulator's.",
    ]
    return Table(titled("Mean absolute error", labels), ("predictor", "arm", *_words()), rows, notes, num_left=2)


def cell_table(own: pd.DataFrame, labels: Sequence[str]) -> Table:
    """Signed errors of the simulator: a row per cell and arm."""
    rows = []
    for where, each in own.groupby([*Cell.__dataclass_fields__, "arm"], sort=True):
        errors = each.set_index("figure")["error_pct"]
        rows.append((_name(each), str(where[-1]), *(percent(float(errors[figure])) for figure in FIGURES)))
    return Table(titled("Signed errors of the simulator", labels), ("cell", "arm", *_words()), rows, num_left=2)


def worst_table(own: pd.DataFrame, labels: Sequence[str]) -> Table:
    """The largest errors of the simulator."""
    order = own["error_pct"].abs().sort_values(ascending=False, na_position="last").index[:NUM_WORST]
    rows = [
        (
            _name(own.loc[[index]]),
            str(own.loc[index, "arm"]),
            FIGURES[str(own.loc[index, "figure"])],
            *(f"{float(own.loc[index, name]):.3g}" for name in ("modeled", "measured")),
            percent(float(own.loc[index, "error_pct"])),
        )
        for index in order
    ]
    columns = ("cell", "arm", "figure", "modeled", "measured", "error")
    return Table(titled("Worst cells of the simulator", labels), columns, rows, num_left=3)


def step_table(held: Sequence[tuple[Mapping[str, Any], Run]], compute: ComputeModel, labels: Sequence[str]) -> Table:
    """How long each run's own steps took, against the step model that the map reckons with: median ratios.

    Far from 1 in all roles: the machine was not as fast as when it was calibrated. In one role: the model lacks what
    that role does beside its steps.
    """
    found = [(cell, step_ratios(run, compute)) for cell, run in held]
    roles = sorted({role for _, ratios in found for role in ratios})
    rows = [
        (_cell(cell).name, *(f"{ratios[role]:.2f}" if role in ratios else NONE for role in roles))
        for cell, ratios in found
    ]
    notes = ["Measured over modeled, medians over steps. Chunks count as prompts of their own."]
    return Table(titled("Steps against the calibration", labels), ("cell", *roles), rows, notes)


def step_ratios(run: Run, compute: ComputeModel) -> dict[str, float]:
    """role -> median of measured over modeled step seconds."""
    steps = run.tables["steps"]
    tokens = steps["num_prefill_tokens"]
    pairs = tokens * (tokens / steps["num_prefill_seqs"].clip(lower=1) + 1) / 2
    decodes = compute.decode_seq_s * steps["num_decode_seqs"] + compute.context_token_s * steps["num_context_tokens"]
    modeled_s = compute.base_s + compute.prefill_token_s * tokens + compute.prefill_pair_s * pairs + decodes
    ratios = (steps["end_ns"] - steps["begin_ns"]) / NS_PER_S / modeled_s
    return {str(role): float(ratio) for role, ratio in ratios.groupby(steps["role"]).median().items()}


def _cell(where: Any) -> Cell:  # a mapping, or a row of a frame
    return Cell(*(where[name] for name in Cell.__dataclass_fields__))


def _name(rows: pd.DataFrame) -> str:
    return _cell(rows.iloc[0]).name


def _words() -> list[str]:
    return [word.replace("_s ", " ").replace("_rps", "") for word in FIGURES.values()]
