"""The interval of a figure that is frozen before it is measured: the machine's speed, and chance among a few blocks.

Both are 95 % half widths of independent errors, so they add as squares. The speed of a machine is common to both arms
of a comparison, which alternate within seconds; what blocks that follow each other differ by is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, log

from xpyd.economics.break_even import prediction_half_width
from xpyd.economics.drift import Drift


@dataclass(frozen=True)
class Modeled:
    """A figure of one arm: of every simulated block, and its mean on a machine as fast, and as slow, as may be."""

    blocks: Sequence[float]
    usual: float
    fast: float
    slow: float


def arm_range(figure: Modeled) -> tuple[float, float]:
    """(low, high) of the mean over as many blocks as were simulated."""
    chance = prediction_half_width(figure.blocks, len(figure.blocks))
    ends = figure.usual, figure.fast, figure.slow
    return figure.usual - hypot(figure.usual - min(ends), chance), figure.usual + hypot(
        max(ends) - figure.usual, chance
    )


def ratio_range(split: Modeled, together: Modeled, drift: Drift) -> tuple[float, float]:
    """(low, high) of one arm over the other, as ``arm_range``; (nan, nan) where the other arm's figure may be zero."""
    if min(together.usual, together.fast, together.slow, *together.blocks) <= 0:
        return float("nan"), float("nan")
    usual, *ends = (getattr(split, name) / getattr(together, name) for name in ("usual", "fast", "slow"))
    pairs = [ours / theirs for ours, theirs in zip(split.blocks, together.blocks, strict=True)]
    apart = usual * drift.chance * hypot(_elasticity(split, drift), _elasticity(together, drift))
    chance = hypot(prediction_half_width(pairs, len(pairs)), apart)
    return usual - hypot(usual - min(usual, *ends), chance), usual + hypot(max(usual, *ends) - usual, chance)


def _elasticity(figure: Modeled, drift: Drift) -> float:
    """By how many per cent the figure changes with one per cent of the machine's speed; 0 where it does not."""
    if drift.off == 0 or min(figure.fast, figure.slow) <= 0:
        return 0.0
    return log(figure.slow / figure.fast) / (2 * drift.off)
