"""Where splitting pays: one cell of link, prompt, rate and output, and its class from paired blocks. Pure.

A cell is played in both arms on the same requests, several times. Its class is *split* or *do not split* where the
interval of what splitting saves is on one side of zero by more than the model's known error, else *undecided*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import stdtrit

from xpyd.economics.ledger import Ledger
from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Interval

SPLIT, STAY, UNDECIDED = "split", "do not split", "undecided"
CONFIDENCE = 0.95
Criterion = Literal["ledger", "net"]


@dataclass(frozen=True, order=True)
class Cell:
    """One point of the map. ``link_gbps`` in bits per second, lengths in tokens, ``rate_rps`` of arrivals."""

    output_len: int
    rate_rps: float
    input_len: int
    link_gbps: float

    @property
    def name(self) -> str:
        return f"{self.link_gbps:g} Gb/s, {self.input_len} in, {self.output_len} out, {self.rate_rps:g} /s"


@dataclass(frozen=True)
class Judged:
    """What splitting saves in a cell, in seconds per request, and its class. ``margin_s``: the model's known error."""

    answer: str
    saved: Interval  # by the criterion: win - bill, or end to end
    win_s: float
    bill_s: float
    pools_s: float
    margin_s: float


def judge(ledgers: Sequence[Ledger], criterion: Criterion, band: float) -> Judged:
    """The class of a cell from the ledgers of its block pairs.

    ``band`` is the model's known relative error: it may be off by so much of the largest part of the sum.
    """
    lines = {name: [getattr(each, name) for each in ledgers] for name in ("win_s", "bill_s", "pools_s")}
    means = {name: float(np.mean(values)) for name, values in lines.items()}
    counted = ("win_s", "bill_s") if criterion == "ledger" else tuple(means)
    margin_s = band * max(abs(means[name]) for name in counted)
    saved = paired_interval([getattr(each, f"{criterion}_s") for each in ledgers])
    return Judged(answer(saved, margin_s), saved, means["win_s"], means["bill_s"], means["pools_s"], margin_s)


def answer(saved: Interval, margin_s: float = 0.0) -> str:
    """The class of an interval of what splitting saves; undecided within ``margin_s`` of zero, or where unknown."""
    if saved.known and saved.low - margin_s > 0:
        return SPLIT
    if saved.known and saved.high + margin_s < 0:
        return STAY
    return UNDECIDED


def prediction_half_width(values: Sequence[float], num_more: int) -> float:
    """By how much the mean of ``num_more`` further values may be off that of ``values``: 95 %, by Student's t.

    Of at least two values, all independent and alike: a slow drift is not in it.
    """
    spread = float(np.std(values, ddof=1)) * (1 / len(values) + 1 / num_more) ** 0.5
    return float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2) * spread)


def paired_interval(values: Sequence[float]) -> Interval:
    """Mean of paired differences and its 95 % interval by Student's t; no ends below five pairs."""
    mid, num = float(np.mean(values)), len(values)
    if num < MIN_BLOCK_PAIRS:
        return Interval(float("nan"), mid, float("nan"))
    spread = float(stdtrit(num - 1, 0.5 + CONFIDENCE / 2) * np.std(values, ddof=1) / np.sqrt(num))
    return Interval(mid - spread, mid, mid + spread)
