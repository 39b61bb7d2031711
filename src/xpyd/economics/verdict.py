"""The decision, per length class: split, don't (for one of two reasons), or undecided. Never once per cluster.

Measured numbers come as intervals over block pairs; a closed-form point is an interval of no width.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import isnan

from xpyd.units import format_s

MIN_BLOCK_PAIRS = 5


@dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval; seconds per request here. NaN ends: too few pairs to know."""

    low: float
    mid: float
    high: float

    @property
    def known(self) -> bool:
        return not (isnan(self.low) or isnan(self.mid) or isnan(self.high))


class Answer(StrEnum):
    SPLIT = "split"
    LINK_TOO_SLOW = "don't: the link is too slow"
    NO_INTERFERENCE = "don't: no interference to cure"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Verdict:
    """The answer, and a sentence that gives the numbers behind it."""

    answer: Answer
    because: str


def decide(win: Interval, bill: Interval, ledger: Interval, num_blocks: int) -> Verdict:
    """The verdict on ``ledger`` (win minus bill), from ``num_blocks`` block pairs.

    ``ledger`` above zero: split. Below: no interference where the win's interval is not above zero either, else the
    link is too slow. Undecided where the interval touches zero, is unknown, or stands on fewer than five pairs.
    """
    if num_blocks < MIN_BLOCK_PAIRS:
        pairs = "1 block pair was" if num_blocks == 1 else f"{num_blocks} block pairs were"
        return Verdict(Answer.UNDECIDED, f"only {pairs} played and a verdict needs {MIN_BLOCK_PAIRS}; raise num_pairs")
    if not ledger.known:
        return Verdict(Answer.UNDECIDED, "the ledger has no interval: a block pair lacks requests of this class")
    if ledger.low > 0:
        saves = f"splitting saves {_words(ledger)} per request"
        return Verdict(Answer.SPLIT, f"{saves}: win {_words(win)}, bill {_words(bill)}")
    if ledger.high >= 0:
        return Verdict(
            Answer.UNDECIDED,
            f"win minus bill is {_words(ledger)} per request, and that interval holds zero; more block pairs narrow it",
        )
    loses = f"splitting loses {_words(_negated(ledger))} per request"
    if win.low > 0:
        return Verdict(Answer.LINK_TOO_SLOW, f"{loses}: the bill of {_words(bill)} exceeds the win of {_words(win)}")
    return Verdict(
        Answer.NO_INTERFERENCE,
        f"{loses}: the win is {_words(win)}, not above zero, beside a bill of {_words(bill)}",
    )


def decide_modeled(win_s: float, bill_s: float) -> Verdict:
    """The verdict on one closed-form point: intervals of no width, so undecided only where win and bill are equal."""
    return decide(exactly(win_s), exactly(bill_s), exactly(win_s - bill_s), MIN_BLOCK_PAIRS)


def exactly(value: float) -> Interval:
    """A modeled value as an interval of no width."""
    return Interval(value, value, value)


def pools_note(net: Interval, answer: Answer) -> str:
    """A sentence where end-to-end time says the opposite of ``answer``, else nothing.

    The ledger leaves out queue and prefill; when x of N ranks prefill slower than all N, ``net`` shows it.
    """
    if not net.known or answer is Answer.UNDECIDED:
        return ""
    if answer is Answer.SPLIT and net.high < 0:
        return (
            f"End to end splitting still loses {_words(_negated(net))} per request: this xPyD ratio starves a pool; "
            "try another x and y before splitting."
        )
    if answer is not Answer.SPLIT and net.low > 0:
        return (
            f"End to end splitting still saves {_words(net)} per request: its pools queue or prefill faster than the "
            "colocated ranks, which the two ledgers do not count."
        )
    return ""


def _negated(interval: Interval) -> Interval:
    return Interval(-interval.high, -interval.mid, -interval.low)


def _words(interval: Interval) -> str:
    """``12 ms (9 ms to 15 ms)``; the middle alone where the interval has no width or is unknown."""
    if not interval.known or interval.low == interval.high:
        return format_s(interval.mid)
    return f"{format_s(interval.mid)} ({format_s(interval.low)} to {format_s(interval.high)})"
