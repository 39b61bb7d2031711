"""How far a machine that changes its speed may be off its calibration: the mean of a further group of values. Pure.

Blocks that follow each other within seconds are alike; those of another minute may all be slower. So blocks are no
independent draws: each lies about the mean of its group (a calibration, or a round of one), and groups lie about the
mean of all: the one-way random effects model (Searle, Casella and McCulloch, Variance Components, 1992, chapter 3).
A run is one more group, and how far off its mean may be is learnt from as many groups as there are, however many
blocks they have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95
MIN_GROUPS = 2


@dataclass(frozen=True)
class Drift:
    """Of groups of logarithms, so that 0.1 is about 10 %. ``off``, ``chance``: half widths of 95 % intervals.

    ``between``: standard deviation of groups, beyond what their few values explain; ``within``: of the values of a
    group. ``off``: by how much the mean of a further group may be off that of all groups; ``chance``: by how much the
    mean of its values may be off because they are few, were the machine's speed known.
    """

    between: float
    within: float
    off: float
    chance: float


def drift_of(groups: Sequence[Sequence[float]], num_more: int) -> Drift | None:
    """From groups of values, for a further group of ``num_more``; None below two groups, which show no drift.

    The variance of the difference of its mean and theirs is ``(1 + 1 / k)`` times that of the k group means, which has
    k - 1 degrees of freedom; where the further group has fewer values than they, more of the variance within comes on
    top (degrees of freedom after Satterthwaite 1946). Nothing is cut off at zero, so it also holds for few groups.
    """
    logs = [np.log(group) for group in groups if len(group)]
    num = len(logs)
    if num < MIN_GROUPS:
        return None
    spare = sum(map(len, logs)) - num  # degrees of freedom within groups
    within = float(sum(((group - group.mean()) ** 2).sum() for group in logs) / spare) if spare else 0.0
    means = float(np.var([group.mean() for group in logs], ddof=1))
    share = float(np.mean([1 / len(group) for group in logs]))  # of the variance within, that is in a group's mean
    parts = (1 + 1 / num) * means, max(0.0, 1 / num_more - share) * within
    freedom = num - 1.0
    if parts[1]:
        freedom = sum(parts) ** 2 / (parts[0] ** 2 / (num - 1) + parts[1] ** 2 / spare)
    return Drift(
        between=max(0.0, means - share * within) ** 0.5,
        within=within**0.5,
        off=_student(freedom) * sum(parts) ** 0.5,
        chance=_student(spare) * (within / num_more) ** 0.5 if spare else 0.0,
    )


def _student(freedom: float) -> float:
    """The factor on a standard deviation that was learnt with so many degrees of freedom."""
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
