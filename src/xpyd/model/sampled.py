"""A sampled token. Plain data, apart from the sampling: who only passes tokens on needs no torch."""

from __future__ import annotations

import msgspec


class Sampled(msgspec.Struct, frozen=True):
    """A token, and the gap between the two largest logits: how close the greedy choice was."""

    token: int
    margin: float
