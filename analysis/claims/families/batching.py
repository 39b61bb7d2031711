"""Continuous batching against static batching, on one colocated rank."""

from __future__ import annotations

from math import inf

import pandas as pd

from analysis.claims.claim import Claim, Claimed, Measured, Measurement, Part, Runs, Unmeasurable
from analysis.claims.measurements import COMMON, measured_ratio, tokens_per_s
from analysis.load import Run

MIXED = (
    "workload.classes=[{name:mixed,share:1.0,input_len:{kind:uniform,low:16,high:64},"
    "output_len:{kind:uniform,low:4,high:96}}]"
)
CONTINUOUS, STATIC = (
    Measurement(
        name,
        "serve",
        (
            "placement=1c",
            f"scheduler={policy}",
            "scheduler.max_num_batched_tokens=512",
            "scheduler.max_num_seqs=8",
            "num_blocks=6",
            "workload.num_requests=32",
            "workload.arrival.rate_rps=500",
            MIXED,
        ),
        quick=("num_blocks=5", "workload.num_requests=24"),
        tells={"scheduler.policy": policy, "placement.num_colocated": 1},
    )
    for name, policy in (("continuous", "chunked"), ("static", "static"))
)


def batching_ratios(continuous: Run, static: Run) -> pd.Series:
    """Output tokens per second, continuous over static, by block: those of one number play the same requests."""
    ours, theirs = (tokens_per_s(run).mean(axis=1) for run in (continuous, static))
    found = (ours / theirs).dropna()
    if found.empty:
        raise Unmeasurable("the two runs have no block in common")
    return found


def _gain(runs: Runs) -> Measured:
    run = runs[CONTINUOUS.name]
    burst, seats = run.config["workload"]["num_requests"], run.config["scheduler"]["max_num_seqs"]
    conditions = f"{burst} requests at once for {seats} seats, 4 to 96 output tokens; static ends without padding"
    return measured_ratio(batching_ratios(run, runs[STATIC.name]), "blocks", conditions)


CLAIMS = [
    Claim(
        "continuous_batching",
        "Continuous batching serves more tokens per second than static batching.",
        COMMON + " No figure is given with it.",
        "Output tokens per second of one rank, continuous over static, on the same requests.",
        (CONTINUOUS, STATIC),
        (Part("throughput, continuous over static", "ratio", Claimed(1, inf, "more than 1"), _gain),),
    )
]
