"""What the two ranks of a pair saw, put together. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from xpyd.preflight.facts import PairFacts
from xpyd.units import format_bytes

WRONG_CHECKSUM = "the wrong checksum"

Pair = tuple[int, int]  # source rank, destination rank


@dataclass(frozen=True)
class Side:
    """What one rank saw of a pair. ``seconds``: echoes at the source, windows at the destination."""

    error: str = ""
    route: str = ""
    seconds: tuple[float, ...] = ()


def merge(pairs: Sequence[Pair], sides: Sequence[Mapping[Pair, Side]], problems: Sequence[str]) -> list[PairFacts]:
    """What both ranks of each pair saw, as one; ``sides`` and ``problems`` (opening the transport) by rank."""
    found = []
    for source, destination in pairs:
        if problems[source] or problems[destination]:
            found.append(PairFacts(source, destination, unprobed=True))
            continue
        here, there = sides[source][source, destination], sides[destination][source, destination]
        error = there.error if WRONG_CHECKSUM in there.error else here.error or there.error  # it saw the bytes first
        echo_s = None if error else median(here.seconds)
        found.append(PairFacts(source, destination, here.route or there.route, echo_s, None, error))
    return found


def with_bandwidth(pair: PairFacts, source: Side, destination: Side, window_bytes: int) -> PairFacts:
    """``pair`` with the median over the windows that the destination timed, or with what went wrong."""
    error = destination.error or source.error
    if error:
        return replace(pair, error=f"a window of {format_bytes(window_bytes)}: {error}")
    return replace(pair, rate_bytes_per_s=window_bytes / median(destination.seconds))
