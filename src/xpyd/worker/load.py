"""What runs beside a hand-off that is timed, and what that takes. Plain data: the client needs it, without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Load:
    """What runs beside a hand-off of ``prompt_tokens``: 0 prompt tokens is the decode batch alone."""

    prompt_tokens: int
    num_decode_seqs: int
    prefill_tokens: int


@dataclass(frozen=True)
class SourceStep:
    """One prefill step of the source; ``beside``: while it sends the hand-off of ``load``, or a part of that time."""

    load: Load
    repeat: int
    beside: bool
    seconds: float
