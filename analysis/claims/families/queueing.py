"""Who decides when KV moves: where a burst queues up under pull and under push."""

from __future__ import annotations

from math import inf

import pandas as pd

from analysis.claims.claim import Claim, Claimed, Measured, Measurement, Part, Runs, Unmeasurable
from analysis.claims.measurements import COMMON, durations_s, measured
from analysis.load import Run
from analysis.requests import request_frame

BURST = (
    "transfer=layerwise",
    "num_blocks=6",
    "workload=fixed",
    "workload.num_requests=16",
    "workload.input_len=64",
    "workload.output_len=96",
    "workload.arrival.rate_rps=200",
    "scheduler.max_num_seqs=4",
)
PULL, PUSH = (
    Measurement(
        direction,
        "serve",
        (*BURST, f"transfer.direction={direction}"),
        quick=("num_blocks=5", "workload.num_requests=12"),
        tells={"transfer.direction": direction, "scheduler.max_num_seqs": 4},
    )
    for direction in ("pull", "push")
)


def num_waiting(run: Run) -> pd.Series:
    """Requests whose KV has landed and that wait for a seat in the decode batch: mean over each block's time.

    By Little's law the sum of their waits over the block's duration. Raises Unmeasurable where nothing was handed off.
    """
    frame = request_frame(run)
    landed = frame[frame["transfer_end_ns"].notna()]
    if landed.empty:
        raise Unmeasurable("no KV was handed off")
    return landed.groupby("block")["admission_s"].sum() / durations_s(run)


def _queue(measurement: Measurement, claimed: Claimed) -> Part:
    def measure(runs: Runs) -> Measured:
        run = runs[measurement.name]
        seats, burst = run.config["scheduler"]["max_num_seqs"], run.config["workload"]["num_requests"]
        return measured(num_waiting(run), "blocks", f"bursts of {burst} requests for {seats} decode seats")

    return Part(f"waiting with landed KV: {measurement.name}", "count", claimed, measure)


CLAIMS = [
    Claim(
        "pull_queue",
        "Pull keeps queues from building up in the decode pool; push does not.",
        COMMON + " No figure is given with it; a queue is taken as one request or more on average.",
        "Mean number of requests whose KV lies in the decode pool while they wait for a seat, in a burst.",
        (PULL, PUSH),
        (
            _queue(PULL, Claimed(0, 1, "no queue: less than one")),
            _queue(PUSH, Claimed(1, inf, "a queue: one or more")),
        ),
    )
]
