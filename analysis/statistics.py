"""What one block says: the figures of every block of an arm, one row per pair. Intervals resample these rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.load import Run
from analysis.requests import STAGE_TIMES
from xpyd import metrics
from xpyd.units import NS_PER_S

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
# Quantities beside the stage times, in the order of the tables, with their units.
UNITS: Mapping[str, str] = {
    "ttft_s p50": "s",
    "ttft_s p90": "s",
    "ttft_s p99": "s",
    "ttft_prefill_s p50": "s",
    "ttft_decode_s p50": "s",
    "itl_s p50": "s",
    "itl_s p90": "s",
    "itl_s p99": "s",
    "itl_s max": "s",
    "max_gap_s mean": "s",
    "tpot_s mean": "s",
    "tbt_tail_s mean": "s",
    "e2e_s mean": "s",
    "attainment": "share",
    "goodput_rps": "1/s",
    "goodput_rps per rank": "1/s",
    "transfer_s mean": "s",
    "overlap": "share",
    "penalty_ratio": "ratio",
}
SPREADS = ["ttft_s", "ttft_prefill_s", "ttft_decode_s"]  # of these, quantiles
MEANS = ["ttft_s", "mean_gap_s", "max_gap_s", "tpot_s", "tbt_tail_s", "e2e_s", "transfer_s"]
ONLY_HAND_OFF = ("transfer_s mean", "overlap", "penalty_ratio")  # a colocated arm has no such thing
HIGHER_IS_BETTER = ("attainment", "goodput_rps", "goodput_rps per rank", "overlap")


def block_statistics(
    offered: pd.DataFrame,
    timed: pd.DataFrame,
    gaps: metrics.Gaps,
    blocks: pd.DataFrame,
    slo: Mapping[str, float],
    num_workers: int,
) -> pd.DataFrame:
    """The statistics of one arm, one row per pair: means of ``STAGE_TIMES`` and every quantity of ``UNITS``.

    ``offered`` are all requests of the arm, ``timed`` those whose times count, both with the request frame's index;
    ``gaps`` are those of every request of the run; ``blocks`` gives the durations. ``slo`` holds ``ttft_s``, ``itl_s``.
    """
    found = pd.DataFrame(index=pd.Index(sorted(offered["pair"].unique()), name="pair"))
    by_pair = timed.groupby("pair")
    means = by_pair[[*STAGE_TIMES, *MEANS]].mean()
    spreads = [by_pair[SPREADS].quantile(q).add_suffix(f" {name}") for name, q in QUANTILES.items()]
    found = found.join([means[STAGE_TIMES], *spreads, _gap_quantiles(timed, gaps), means[MEANS].add_suffix(" mean")])
    meets = meets_slo(offered, slo).groupby(offered["pair"])
    duration_s = (blocks["end_ns"] - blocks["begin_ns"]).groupby(blocks["pair"]).first() / NS_PER_S
    found["attainment"] = meets.agg(metrics.attainment)
    found["goodput_rps"] = [metrics.goodput_rps(flags, duration_s[pair]) for pair, flags in meets]
    found["goodput_rps per rank"] = found["goodput_rps"] / num_workers
    found["overlap"] = metrics.overlap(found["transfer_s mean"], found["exposed_transfer_s"])
    found["penalty_ratio"] = metrics.penalty_ratio(found["exposed_transfer_s"], found["prefill_s"])
    return found.astype("float64")  # also where an arm has no block: empty columns come out as bool


def _gap_quantiles(timed: pd.DataFrame, gaps: metrics.Gaps) -> pd.DataFrame:
    """Quantiles over all gaps of each pair's requests that were waited, one row per pair."""
    shares = {**QUANTILES, "max": 1.0}
    rows = {}
    for pair, own in timed.groupby("pair"):
        seconds = metrics.waits_s(gaps.of(own.index.to_numpy()))
        seconds.sort()  # a copy; one sort is faster than the selection of several ranks
        rows[pair] = np.full(len(shares), np.nan)
        if len(seconds):
            rows[pair] = np.quantile(seconds, list(shares.values()), overwrite_input=True)
    return pd.DataFrame.from_dict(rows, orient="index", columns=[f"itl_s {name}" for name in shares])


def meets_slo(requests: pd.DataFrame, slo: Mapping[str, float]) -> pd.Series[bool]:
    """Which requests finished with TTFT and *every* gap within the limits: a mean would hide the stalls."""
    finished = requests["status"] == "finished"
    found = metrics.meets_slo(finished, requests["ttft_s"], requests["max_gap_s"], slo["ttft_s"], slo["itl_s"])
    return pd.Series(np.asarray(found, dtype=bool), index=requests.index)


def num_workers(run: Run) -> int:
    """Ranks with a model, the same number in every arm."""
    placement = run.config["placement"]
    roles = ("prefill", "decode", "colocated")
    return sum(int(placement[f"num_{role}"]) * instance_of(placement, role)[1] for role in roles)


def instance_of(placement: Mapping[str, Any], role: str) -> tuple[str, int]:
    """How the ranks of an instance of this role divide its work, and how many they are."""
    widths = ((kind, int(placement.get(f"{role}_{kind}") or 1)) for kind in ("tp", "cp", "pp", "ep"))
    return next((each for each in widths if each[1] > 1), ("tp", 1))
