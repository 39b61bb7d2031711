"""What the blocks of a run say, one value per block and quantity: the ground on which runs are compared."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Sequence

import pandas as pd

from analysis.ledger import OVERALL, Comparison
from analysis.load import Run, RunError
from analysis.requests import STAGE_TIMES
from analysis.serve import block_values
from analysis.statistics import UNITS

LEDGER = dict.fromkeys(("bill_s", "win_s", "ledger_s", "pools_s", "net_s"), "s")
DEFAULT_SHOW = {"compare": ("bill_s", "win_s", "net_s"), "serve": ("ttft_s p50", "itl_s p99", "goodput_rps")}


def _compared(run: Run) -> pd.DataFrame:
    """What splitting changes, one row per block pair: stages and metrics as disaggregated - colocated, ledger lines."""
    sides = Comparison(run).sides(OVERALL)
    changes = pd.DataFrame({name: sides.change(name) for name in (*STAGE_TIMES, *UNITS)})
    return changes.join(sides.ledgers())


COLUMNS: dict[str, Callable[[Run], pd.DataFrame]] = {"compare": _compared, "serve": block_values}


def units_of(experiment: str) -> dict[str, str]:
    """Every quantity of an experiment with its unit."""
    own = LEDGER if experiment == "compare" else {}
    return {**own, **dict.fromkeys(STAGE_TIMES, "s"), **UNITS}


def values_by_block(run: Run, show: Sequence[str]) -> dict[str, pd.Series]:
    """The values of each quantity, those that are known. Raises RunError for a quantity that there is not."""
    units = units_of(run.experiment)
    for name in show:
        if name not in units:
            raise RunError(f"--show {name}: no such quantity of {run.experiment}; {nearest(name, list(units))}")
    values = COLUMNS[run.experiment](run)
    return {name: values[name].dropna() for name in show}


def add_show(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--show", metavar="NAMES", help="quantities, such as bill_s,net_s or 'itl_s p99' (default: a few)"
    )


def chosen(names: str | None, experiment: str) -> tuple[str, ...]:
    """The quantities that ``--show`` names."""
    return tuple(name.strip() for name in names.split(",")) if names else DEFAULT_SHOW[experiment]


def nearest(wrong: str, known: Sequence[str]) -> str:
    """What may have been meant, for the end of an error."""
    near = difflib.get_close_matches(wrong, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
