"""What ``plan`` weighs: every way to use a number of ranks, and what is varied to see where the answer turns. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, MinLen

from xpyd.economics.codecs import CodecTerm
from xpyd.placement import PlacementConfig, Width
from xpyd.units import GIGA

Mode = Literal["whole", "layerwise", "chunkwise"]
Positive = Annotated[float, Gt(0)]
MAX_CANDIDATES = 200


@dataclass(frozen=True)
class PlanConfig:
    """``num_ranks`` to use, all of them; tensor-parallel ``widths`` and hand-off ``modes`` to try for either role.

    ``codecs`` to try on every hand-off, beside none: assumed ones, and with ``codec_run`` all that a run of ``codecs``
    timed. ``hybrid``: also route each request by its cost, to stay on one rank or to move (``xpyd.hybrid``).

    A width at which a rank's share of the weights is above ``rank_memory_gbytes`` (decimal) is left out. Where the
    answer may turn: the best split and the best colocated way are played anew at each of ``link_gbps`` (bits per
    second) and of ``input_lens`` (every prompt of that length).
    """

    num_ranks: Annotated[int, Gt(1)]
    widths: Annotated[tuple[Width, ...], MinLen(1)] = (1,)
    modes: Annotated[tuple[Mode, ...], MinLen(1)] = ("layerwise",)
    codecs: tuple[CodecTerm, ...] = ()
    codec_run: str | None = None
    hybrid: bool = False
    rank_memory_gbytes: Positive | None = None
    link_gbps: tuple[Positive, ...] = ()
    input_lens: tuple[Annotated[int, Gt(0)], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """One way to use the ranks. ``mode`` is empty where no KV moves."""

    placement: PlacementConfig
    mode: Mode | Literal[""]
    codec: CodecTerm | None = None
    hybrid: bool = False

    @property
    def name(self) -> str:
        words = [self.placement.name, self.mode, self.codec.name if self.codec else "", "hybrid" if self.hybrid else ""]
        return " ".join(word for word in words if word)

    @property
    def splits(self) -> bool:
        return self.placement.num_colocated == 0


def candidates(config: PlanConfig, weight_bytes: float, measured: Sequence[CodecTerm] = ()) -> list[Candidate]:
    """Every candidate, colocated ones first. ``weight_bytes``: of the whole model; ``measured``: of ``codec_run``.

    Raises ValueError where there is none, no colocated one to hold the others against, or more than can be played.
    """
    room = config.rank_memory_gbytes
    widths = [width for width in config.widths if room is None or weight_bytes / width <= room * GIGA]
    if not widths:
        raise ValueError(
            f"plan.widths={list(config.widths)} with plan.rank_memory_gbytes={room}: a share of the weights "
            f"({weight_bytes / GIGA:.3g} GB in all) does not fit; allow wider instances"
        )
    together = [
        Candidate(PlacementConfig(num_colocated=config.num_ranks // width, colocated_tp=width), "")
        for width in widths
        if config.num_ranks % width == 0
    ]
    if not together:
        raise ValueError(
            f"plan.num_ranks={config.num_ranks}: no width of {widths} divides it, so there is no colocated way to "
            "compare with; choose another number"
        )
    codecs = [*config.codecs, *measured]
    names = [codec.name for codec in codecs]
    if len(set(names)) < len(names):
        raise ValueError(f"plan.codecs: {names} holds a name twice; a way is told by it, so choose another")
    found = list(together)
    for split in _splits(config.num_ranks, widths):
        for mode in config.modes:
            found += [Candidate(split, mode, codec) for codec in (None, *codecs)]
            if config.hybrid and split.alone:
                found.append(Candidate(split, mode, hybrid=True))
    if len(found) > MAX_CANDIDATES:
        raise ValueError(
            f"plan.num_ranks={config.num_ranks}, plan.widths={list(config.widths)}: {len(found)} candidates, at most "
            f"{MAX_CANDIDATES} are played; give fewer widths, modes or codecs"
        )
    return found


def _splits(num_ranks: int, widths: list[Width]) -> Iterator[PlacementConfig]:
    """xPyD with any two widths that use all ranks."""
    for wide in widths:
        for num_prefill in range(1, num_ranks // wide + 1):
            left = num_ranks - num_prefill * wide
            for width in widths:
                if left >= width and left % width == 0:
                    yield PlacementConfig(
                        num_prefill=num_prefill, num_decode=left // width, prefill_tp=wide, decode_tp=width
                    )
