"""Measurements that claims of several families read, and how samples become an interval."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from analysis.claims.claim import Measured, Measurement
from analysis.intervals import bootstrap_mean
from analysis.load import Run
from xpyd.economics.verdict import Interval
from xpyd.units import NS_PER_S

COMMON = "Commonly reported in the literature of the field; the plan of this suite names no single paper."

# The rival's own settings first: `compare` and `saturation` find them among their neighbours (docs/rival.md).
TUNED = Measurement(
    "rival",
    "tune_colocated",
    (
        "search.policies=[chunked]",
        "search.max_num_batched_tokens=[64,512]",
        "search.max_num_seqs=[32]",
        "search.num_repeats=2",
        "search.num_final_repeats=5",
        "workload.num_requests=16",
    ),
    in_quick=False,
)
COMPARED = Measurement(
    "compare",
    "compare",
    ("num_pairs=6", "null_control=false"),
    quick=("num_pairs=5", "workload.num_requests=16"),
    tells={"workload.arrival.concurrency": None},
    after=(TUNED,),
)
SATURATED = Measurement(
    "saturation",
    "saturation",
    (
        "search.start_rps=4",
        "search.max_rps=256",
        "search.growth=2",
        "search.precision=0.5",
        "search.block_s=1.5",
        "search.num_repeats=5",
        "workload.num_requests=8",
    ),
    quick=("search.block_s=1", "workload.num_requests=6"),
    after=(TUNED,),
)
# One prompt at a time, in one step, so that a layer's KV hides behind the layers that follow.
HANDED_OFF = Measurement(
    "handoff",
    "handoff",
    (
        "sweep.modes=[whole,layerwise]",
        "sweep.directions=[pull]",
        "sweep.input_len=2048",
        "sweep.num_requests=2",
        "sweep.num_repeats=6",
        "scheduler.policy=chunked",
        "scheduler.max_num_batched_tokens=2048",
    ),
    quick=("sweep.num_requests=1", "sweep.num_repeats=5"),
)


def measured(values: Any, sampled: str, conditions: str = "") -> Measured:
    """Mean and interval over ``values``, one per repeat or block pair; those that are NaN are left out."""
    known = pd.Series(values, dtype="float64").dropna()
    samples = tuple(float(value) for value in known)
    return Measured(bootstrap_mean(known), samples, len(samples), sampled, conditions)


def measured_ratio(ratios: Any, sampled: str, conditions: str = "") -> Measured:
    """Geometric mean of ratios, one per repeat or block pair, and its interval: twice and half weigh the same."""
    return _of_ratios(ratios, sampled, conditions, lambda ratio: ratio)


def measured_cut(ratios: Any, sampled: str, conditions: str = "") -> Measured:
    """What ratios save: one less their geometric mean; negative where they are above one."""
    return _of_ratios(ratios, sampled, conditions, lambda ratio: 1 - ratio)


def _of_ratios(ratios: Any, sampled: str, conditions: str, turn: Callable[[float], float]) -> Measured:
    known = pd.Series(ratios, dtype="float64").dropna()
    with np.errstate(divide="ignore"):
        found = bootstrap_mean(np.log(known))
    low, mid, high = (turn(float(np.exp(end))) for end in (found.low, found.mid, found.high))
    samples = tuple(turn(float(ratio)) for ratio in known)
    return Measured(Interval(min(low, high), mid, max(low, high)), samples, len(samples), sampled, conditions)


def durations_s(run: Run) -> pd.Series:
    """Seconds of every block that ended, by its number."""
    blocks = run.tables["blocks"].set_index("block")
    return (blocks["end_ns"] - blocks["begin_ns"]) / NS_PER_S


def tokens_per_s(run: Run) -> pd.DataFrame:
    """Output tokens per second of every block: a row per pair, a column per arm."""
    blocks = run.tables["blocks"].set_index("block")
    rates = run.tables["tokens"].groupby("block").size().reindex(blocks.index).fillna(0) / durations_s(run)
    return blocks.assign(rate=rates).pivot(index="pair", columns="arm", values="rate")
