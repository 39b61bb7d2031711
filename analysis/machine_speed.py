"""How fast the machine was when held-out cells ran: the steps of each run against the calibration of its map.

Far from 1 in all roles: the machine was not as fast as when it was calibrated. In one role: the model lacks what that
role does beside its steps. The colocated arm knows no link, so its steps tell of the machine alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from analysis.format import NONE
from analysis.load import Run, read_predicted
from analysis.results import Table, titled
from analysis.validate import Scored
from xpyd.economics.cost import ComputeModel, ComputePoint
from xpyd.economics.engine import EngineModel, step_s
from xpyd.units import NS_PER_S

KINDS = ("colocated", "prefill", "prefill, KV leaves", "decode", "decode, KV lands")
END_OF = {"prefill": "src_rank", "decode": "dst_rank"}  # of a transfer, where a role's rank is


def step_table(scored: Sequence[Scored], labels: Sequence[str]) -> Table:
    """Median ratios, a row for each cell; of the colocated arm also the range over its blocks."""
    rows = []
    for each in scored:
        ratios = step_ratios(each.run, each.costs)
        slowness = [value for group in each.costs.get("slowness", []) for value in group] or [np.nan]
        medians = ratios.groupby("kind")["ratio"].median()
        blocks = ratios[ratios["kind"] == "colocated"].groupby("block")["ratio"].median()
        rows.append(
            (
                each.name,
                _range(min(slowness), max(slowness)),
                _range(blocks.min(), blocks.max()),
                *(f"{medians[kind]:.2f}" if kind in medians else NONE for kind in KINDS),
            )
        )
    notes = [
        "Measured over modeled, medians over steps; chunks count as prompts of their own. What moving KV adds to a "
        "step is left out of modeled, so that it is the difference between the last two columns of a role.",
        "calibration: its fastest and its slowest short block, relative to the fit of all. colocated blocks: likewise, "
        "of the run.",
    ]
    columns = ("cell", "calibration", "colocated blocks", *KINDS)
    return Table(titled("Steps against the calibration", labels), columns, rows, notes)


def colocated_slowness(run: Run, costs: Mapping[str, Any]) -> float:
    """How many times longer than calibrated the colocated steps of a run took: the median; NaN where there are none."""
    ratios = step_ratios(run, costs)
    return float(ratios.loc[ratios["kind"] == "colocated", "ratio"].median())


def first_slowness(run: Run, costs: Mapping[str, Any]) -> float:
    """As ``colocated_slowness``, of the steps that the run timed before its first request; NaN where it kept none.

    They are the settings that a calibration times alone, so it takes the map's model of steps alone (``compute``).
    """
    points = read_predicted(run.paths[0]).get("points", {}).get("steps", [])
    alone = ComputeModel(**costs["compute"])
    timed = [ComputePoint(**point) for point in points]
    return median(point.seconds / step_s(alone, point) for point in timed) if timed else float("nan")


def step_ratios(run: Run, costs: Mapping[str, Any]) -> pd.DataFrame:
    """Each step's ``ratio`` of measured over modeled seconds, with its block and ``kind``; ``costs`` as frozen."""
    steps = run.tables["steps"]
    alone, engines = ComputeModel(**costs["compute"]), costs.get("engines", {})
    modeled_s = pd.Series(np.nan, index=steps.index)
    for role, own in steps.groupby("role"):
        compute = EngineModel(**engines[role]).of(alone) if role in engines else alone
        modeled_s[own.index] = modeled(compute, own)
    ratio = (steps["end_ns"] - steps["begin_ns"]) / NS_PER_S / modeled_s
    kind = steps["role"].astype(str)
    moves = beside_transfers(steps, run.tables["transfers"])
    kind = kind + np.where(moves & (kind == "prefill"), ", KV leaves", "")
    kind = kind + np.where(moves & (kind == "decode"), ", KV lands", "")
    return pd.DataFrame({"block": steps["block"], "kind": kind, "ratio": ratio})


def modeled(compute: ComputeModel, steps: pd.DataFrame) -> pd.Series[float]:
    """Seconds of each step."""
    tokens = steps["num_prefill_tokens"]
    pairs = tokens * (tokens / steps["num_prefill_seqs"].clip(lower=1) + 1) / 2
    decodes = compute.decode_seq_s * steps["num_decode_seqs"] + compute.context_token_s * steps["num_context_tokens"]
    chunks_s = compute.prefill_token_s * tokens + compute.prefill_pair_s * pairs
    spared_s = chunks_s.clip(upper=compute.hidden_s) * (tokens > 0)
    return compute.base_s - spared_s + chunks_s + decodes


def beside_transfers(steps: pd.DataFrame, transfers: pd.DataFrame) -> pd.Series[bool]:
    """Whether KV moved in or out of a step's rank while it ran."""
    found = pd.Series(False, index=steps.index)
    for (block, rank, role), own in steps.groupby(["block", "rank", "role"]):
        if role not in END_OF:
            continue
        there = transfers[(transfers["block"] == block) & (transfers[END_OF[str(role)]] == rank)]
        begun = np.searchsorted(np.sort(there["begin_ns"]), own["end_ns"], "left")
        ended = np.searchsorted(np.sort(there["end_ns"]), own["begin_ns"], "right")
        found[own.index] = begun > ended
    return found


def _range(low: float, high: float) -> str:
    return NONE if np.isnan(low) else f"{low:.2f} to {high:.2f}"
