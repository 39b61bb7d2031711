"""What a claim is, and the rule by which it is judged. Pure: intervals and strings, no folders.

A claim has parts ("exposed layer by layer: 1 to 3 %", "exposed whole: 20 to 30 %"), each with a range as claimed. A
part holds where its interval lies wholly inside the range, or beyond it on the side that says more than was claimed;
it does not hold where the interval lies wholly outside; where it overlaps an edge, or is unknown, nothing is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Any, Literal

from analysis.load import Run, setting
from xpyd.economics.verdict import Interval

Runs = Mapping[str, Run]  # by the name of the measurement
Unit = Literal["ratio", "share", "s", "count"]


class Judgement(StrEnum):
    HOLDS = "holds here"
    FAILS = "does not hold here"
    UNDECIDED = "undecided"
    UNMEASURABLE = "not measurable here"


class Unmeasurable(ValueError):
    """A part cannot be measured here; the message names what is missing."""


class NoValue(ValueError):
    """All was there, and what was measured gives no value; the message says why. Such a part stays undecided."""


@dataclass(frozen=True)
class Measurement:
    """One run of an experiment that claims read; several claims may share it.

    ``overrides`` are as on the experiment's command line, and win over the user's; ``quick`` are those that a quick
    pass has beside them (later ones win). ``tells``: config keys (dotted) by which a run folder is known as this
    measurement. ``after``: measured before it, where this one finds its results. ``in_quick=False``: a quick pass
    leaves it out.
    """

    name: str
    experiment: str
    overrides: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    tells: Mapping[str, Any] | None = None
    after: tuple[Measurement, ...] = ()
    in_quick: bool = True

    def is_of(self, run: Run) -> bool:
        """Whether a run folder holds this measurement, by its experiment and ``tells``."""
        told = self.tells or {}
        return run.experiment == self.experiment and all(setting(run, key) == value for key, value in told.items())


@dataclass(frozen=True)
class Claimed:
    """A range as claimed, both ends included; infinite: open. ``words`` as the claim has it, with any rounding of ours.

    ``beyond``: on which side of the range a value says even more than was claimed, and so supports it.
    """

    low: float
    high: float
    words: str
    beyond: Literal["above", "below", "neither"] = "neither"

    def __post_init__(self) -> None:
        assert self.low <= self.high, f"{self.words}: {self.low} to {self.high} is no range"

    @property
    def accepted(self) -> tuple[float, float]:
        """The range in which a value supports the claim."""
        return -inf if self.beyond == "below" else self.low, inf if self.beyond == "above" else self.high


@dataclass(frozen=True)
class Measured:
    """What one part came to. The interval resamples ``num_samples`` blocks, repeats or pairs (``sampled``).

    ``samples``: the value of each alone; where one has none by itself, the estimate from all.
    ``conditions``: what a reader must know of this part's measurement beside the settings of the run.
    """

    value: Interval
    samples: tuple[float, ...]
    num_samples: int
    sampled: str
    conditions: str = ""


@dataclass(frozen=True)
class Modeled:
    """A figure that follows from a formula or a data sheet, shown beside what is measured and never judged."""

    value: float
    words: str


@dataclass(frozen=True)
class Part:
    """``measure`` takes the runs that the claim needs. It raises Unmeasurable, naming what is missing, or NoValue."""

    name: str
    unit: Unit
    claimed: Claimed
    measure: Callable[[Runs], Measured]
    model: Callable[[Runs], Modeled | None] | None = None


@dataclass(frozen=True)
class Claim:
    """``name`` is what ``claims.only`` takes. ``meaning``: how the statement is put to the test, in one sentence."""

    name: str
    statement: str
    source: str
    meaning: str
    needs: tuple[Measurement, ...]
    parts: tuple[Part, ...]


def judge(found: Interval, claimed: Claimed) -> Judgement:
    """The rule of this module's docstring. An interval that is unknown (too few samples) decides nothing."""
    if not found.known:
        return Judgement.UNDECIDED
    low, high = claimed.accepted
    if low <= found.low and found.high <= high:
        return Judgement.HOLDS
    if found.high < low or found.low > high:
        return Judgement.FAILS
    return Judgement.UNDECIDED


def combine(judgements: Sequence[Judgement]) -> Judgement:
    """A claim's judgement from those of its parts: one that does not hold decides, then one that cannot be measured."""
    order = (Judgement.FAILS, Judgement.UNMEASURABLE, Judgement.UNDECIDED, Judgement.HOLDS)
    return min(judgements, key=order.index)
