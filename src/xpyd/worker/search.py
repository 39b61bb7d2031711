"""The search of the ``tune`` experiment: one axis of UCX options after the other, each on top of the best so far. Pure.

An option is adopted when it wins clearly: by more than ``min_gain`` in the median, and in most repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import Annotated

from annotated_types import Ge, Gt

CLEAR_SHARE = 0.75  # of the repeats must be won
REFERENCE = "as it was"  # the name of the best so far in each round
FINAL = "final"
START, TUNED, UCX_DEFAULTS = "start", "tuned", "UCX's defaults"

Settings = dict[str, str]
Change = Mapping[str, str | None]  # None: leave it to UCX


@dataclass(frozen=True)
class TuneSearch:
    """``axes``: axis -> option -> the UCX options (without UCX_) that it sets; null takes one away.

    Each candidate moves ``payload_bytes`` in pieces of every size in ``piece_bytes``, scattered over the pool where
    they are below ``scatter_below_bytes``, with ``flying_bytes`` under way.
    """

    axes: dict[str, dict[str, dict[str, str | None]]]
    piece_bytes: tuple[Annotated[int, Gt(0)], ...]
    payload_bytes: Annotated[int, Gt(0)]
    scatter_below_bytes: Annotated[int, Ge(0)]
    flying_bytes: Annotated[int, Gt(0)]
    num_repeats: Annotated[int, Gt(2)]
    num_final_repeats: Annotated[int, Gt(2)]
    min_gain: Annotated[float, Ge(0)]

    def __post_init__(self) -> None:
        if not self.axes or not all(self.axes.values()):
            raise ValueError("search.axes holds an axis without options, or none at all; name what shall be tried")
        if FINAL in self.axes:
            raise ValueError(f"search.axes.{FINAL}: this name is taken by the last round; choose another")
        for axis, options in self.axes.items():
            for option, change in options.items():
                clash = {"TLS", "NET_DEVICES"} & {key.removeprefix("UCX_") for key in change}
                if clash:
                    raise ValueError(
                        f"search.axes.{axis}.{option} sets {sorted(clash)}, which fabric.tls and fabric.net_devices "
                        "are for; tune each wire in a run of its own"
                    )
        for size in self.piece_bytes:
            if self.payload_bytes % size:
                raise ValueError(
                    f"search.piece_bytes={size} does not divide search.payload_bytes={self.payload_bytes}; use powers "
                    "of two"
                )

    @property
    def num_measurements(self) -> int:
        """Timed transfers from begin to end, no candidate left out."""
        search = sum(len(options) + 1 for options in self.axes.values()) * self.num_repeats
        return (search + 3 * self.num_final_repeats) * len(self.piece_bytes)

    def window(self, piece_bytes: int) -> int:
        """Pieces in flight."""
        return max(self.flying_bytes // piece_bytes, 2)


def changed(settings: Mapping[str, str], change: Change) -> Settings:
    """``settings`` with a change on top."""
    merged = {**settings, **{key.removeprefix("UCX_"): value for key, value in change.items()}}
    return {key: value for key, value in merged.items() if value is not None}


def contenders(best: Settings, options: Mapping[str, Change]) -> dict[str, Settings]:
    """The best so far, and every option on top of it that makes a difference."""
    made = {option: changed(best, change) for option, change in options.items()}
    return {REFERENCE: best, **{option: settings for option, settings in made.items() if settings != best}}


def ratios(seconds: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> list[float]:
    """How many times as fast as the reference, per repeat; ``seconds[repeat][pattern]``, geometric mean of patterns."""
    return [
        geometric_mean(theirs / ours for ours, theirs in zip(mine, other, strict=True))
        for mine, other in zip(seconds, reference, strict=True)
    ]


def winner(timed: Mapping[str, Sequence[Sequence[float]]], min_gain: float) -> str:
    """The contender to go on with; the reference unless another one wins clearly."""
    found = {name: ratios(timed[name], timed[REFERENCE]) for name in timed if name != REFERENCE}
    clear = {
        name: median(each)
        for name, each in found.items()
        if median(each) > 1 + min_gain and sum(ratio > 1 for ratio in each) >= CLEAR_SHARE * len(each)
    }
    return max(clear, key=lambda name: clear[name]) if clear else REFERENCE
