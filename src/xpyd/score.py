"""What one block says, while a search goes on: few figures, from the client's stamps alone. Pure.

The tables of a run rest on the event log; these decide what a search plays next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean

import numpy as np

from xpyd import metrics
from xpyd.request import Request
from xpyd.units import NS_PER_S
from xpyd.workload.slo import SloConfig


@dataclass(frozen=True)
class Score:
    """One block. Seconds are those of requests that ended; NaN where none did."""

    goodput_rps: float
    attainment: float
    itl_p99_s: float
    ttft_p99_s: float
    e2e_mean_s: float


def score(times: Mapping[int, Sequence[int]], requests: Sequence[Request], slo: SloConfig, duration_ns: int) -> Score:
    """What one block says. ``times`` (ns): by request id, when it was due, then when each token came.

    A request that lacks tokens misses the limits, as in every table (``xpyd.metrics.meets_slo``).
    """
    met, gaps, ttft, e2e = [], [], [], []
    for request in requests:
        due, *tokens = times.get(request.request_id, (0,))
        ended = len(tokens) == request.output_len
        own = metrics.itl_s(sorted(tokens))
        if ended:
            ttft.append((min(tokens) - due) / NS_PER_S)
            e2e.append((max(tokens) - due) / NS_PER_S)
            gaps.extend(own.tolist())
        longest = own.max() if len(own) else 0.0
        met.append(ended and bool(metrics.meets_slo(True, ttft[-1], longest, slo.ttft_s, slo.itl_s)))
    return Score(
        goodput_rps=float(metrics.goodput_rps(met, duration_ns / NS_PER_S)),
        attainment=float(metrics.attainment(met)),
        itl_p99_s=_quantile(gaps, 0.99),
        ttft_p99_s=_quantile(ttft, 0.99),
        e2e_mean_s=fmean(e2e) if e2e else float("nan"),
    )


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of each measure over blocks."""
    return Score(**{each.name: fmean(getattr(found, each.name) for found in scores) for each in fields(Score)})


def _quantile(values: Sequence[float], q: float) -> float:
    return float(np.quantile(values, q)) if values else float("nan")
