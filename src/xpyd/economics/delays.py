"""What a request waits for messages and the turns of ranks, while nothing is computed for it and nothing moves.

Each is a part of a millisecond, and there with every request: little beside a long prompt, a good part of a short one.
``worker.played`` reads them off requests that had the workers for themselves, ``simulate`` adds them to its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

Delay = Literal["submit", "leave", "admit", "tell"]


@dataclass(frozen=True)
class DelayPoint:
    """One such wait of one request, or of one token."""

    delay: Delay
    seconds: float


@dataclass(frozen=True)
class Delays:
    """``submit_s``: from when a request is due to the step that begins its prompt, on a rank with nothing else to do.

    ``leave_s``: from the end of a prompt whose KV moves whole until it leaves. ``admit_s``: from when all KV and the
    first token are there until the decode batch has the request. ``tell_s``: from a step's end until the client has
    heard of its tokens.
    """

    submit_s: float = 0.0
    leave_s: float = 0.0
    admit_s: float = 0.0
    tell_s: float = 0.0


NO_DELAYS = Delays()


def fit_delays(points: Sequence[DelayPoint]) -> Delays:
    """The median of each; 0 where none was measured."""
    return Delays(*(_median([p.seconds for p in points if p.delay == delay]) for delay in get_args(Delay)))


def _median(seconds: Sequence[float]) -> float:
    return max(0.0, median(seconds)) if seconds else 0.0
