"""What one simulated block says in figures: stage times as the ledger needs them, quantiles as the tables have them.

A sink for ``account.Account`` that keeps a few stamps of each request instead of writing rows. The definitions are
those of ``analysis.requests`` and ``analysis.statistics``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from xpyd import metrics
from xpyd.economics.ledger import ArmTimes
from xpyd.records import StageRow, TokenRow
from xpyd.request import Stage
from xpyd.units import NS_PER_S

SHARES = (0.5, 0.99)


@dataclass(frozen=True)
class BlockFigures:
    """One block of one arm: mean stage times, and what a service level is about. Quantiles over requests or gaps."""

    times: ArmTimes
    ttft_p50_s: float
    ttft_p99_s: float
    itl_p50_s: float
    itl_p99_s: float
    goodput_rps: float


class StampSink:
    """The first stamp of every stage, and every token's time, of each request of one block."""

    def __init__(self) -> None:
        self._stages: defaultdict[int, dict[str, int]] = defaultdict(dict)
        self._tokens: defaultdict[int, list[int]] = defaultdict(list)

    def write(self, row: Any) -> None:
        if isinstance(row, StageRow):
            self._stages[row.request_id].setdefault(row.stage, row.t_ns)
        elif isinstance(row, TokenRow):
            self._tokens[row.request_id].append(row.t_ns)

    def figures(self, num_met: int, duration_s: float) -> BlockFigures:
        """``num_met`` requests met their limits in the ``duration_s``; all finished, each with two tokens or more."""
        numbers = sorted(self._stages)
        arrived, begun, ended = (self._stamps(stage) for stage in ("arrived", "prefill_begin", "prefill_end"))
        landed = self._stamps(Stage.TRANSFER_END.value, ended)
        admitted = self._stamps(Stage.DECODE_ADMIT.value, ended)
        first, last = (np.array([self._tokens[n][index] for n in numbers], dtype=np.float64) for index in (0, -1))
        exposed_s = metrics.exposed_transfer_s(ended, landed)
        stages = [
            (begun - arrived) / NS_PER_S,
            (ended - begun) / NS_PER_S,
            exposed_s,
            metrics.handoff_s(ended, admitted) - exposed_s,
            (last - admitted) / NS_PER_S,
        ]
        ttft_s = metrics.ttft_s(arrived, first)
        gaps_s = np.concatenate([metrics.itl_s(sorted(self._tokens[n])) for n in numbers])
        waited = metrics.waits_s(gaps_s)
        ttft, itl = (np.quantile(each, SHARES).tolist() for each in (ttft_s, waited))
        times = ArmTimes(*(float(np.mean(each)) for each in stages))
        return BlockFigures(times, ttft[0], ttft[1], itl[0], itl[1], num_met / duration_s)

    def _stamps(self, stage: str, otherwise: np.ndarray | None = None) -> np.ndarray:
        """The stamp of every request, in the order of their numbers; ``otherwise`` where there is none."""
        found = [self._stages[n].get(stage, -1) for n in sorted(self._stages)]
        stamps = np.array(found, dtype=np.float64)
        if otherwise is None:
            assert (stamps >= 0).all(), f"a request has no stamp {stage}"
            return stamps
        return np.where(stamps >= 0, stamps, otherwise)
