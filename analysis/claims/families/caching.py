"""What prefix caching saves where prompts share their beginnings."""

from __future__ import annotations

import pandas as pd

from analysis.claims.claim import Claim, Claimed, Measured, Measurement, Part, Runs, Unmeasurable
from analysis.claims.measurements import COMMON, measured_ratio
from analysis.kv_cache import NO_CACHE, block_frame
from analysis.load import Run

CACHED = Measurement(
    "kv_cache",
    "kv_cache",
    (
        "placement=1c",
        "workload=system_prompts",
        "workload.num_requests=24",
        "workload.arrival.rate_rps=16",
        "scheduler.num_kv_blocks=512",
        "sweep.policies=[lru]",
        "sweep.tiers=[pool]",
        "sweep.num_repeats=5",
    ),
    quick=("workload.num_requests=16",),
)


def prefill_ratios(run: Run) -> pd.Series:
    """Prefill seconds of a block without a cache over those with one, by repeat; the arm that saves most."""
    times = block_frame(run).pivot(index="pair", columns="arm", values="prefill_s")
    cached = [arm for arm in times if arm != NO_CACHE]
    if NO_CACHE not in times or not cached:
        raise Unmeasurable("the run has no blocks with and without a cache")
    return times[NO_CACHE] / times[times[cached].mean().idxmin()]


def _saving(runs: Runs) -> Measured:
    requests = runs[CACHED.name].tables["requests"]
    mean_len = float(requests["input_len"].mean())
    count = requests.groupby("block").size().median()
    return measured_ratio(
        prefill_ratios(runs[CACHED.name]),
        "repeats",
        f"{count:.0f} requests of {mean_len:.0f} prompt tokens a block, an empty cache at its begin",
    )


CLAIMS = [
    Claim(
        "prefix_caching",
        "Prefix caching takes 5 to 10 times less prefill where prompts share their beginning.",
        COMMON,
        "Prefill seconds of the same requests without a cache, over those with one.",
        (CACHED,),
        (Part("prefill, without over with", "ratio", Claimed(5, 10, "5 to 10 times", "above"), _saving),),
    )
]
