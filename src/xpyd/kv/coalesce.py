"""Send blocks as they lie, or gather them first? Decided per hand-off from fitted costs, with the reason kept.

The direct transfer pays ``gamma`` for every piece; the staged one pays it for fewer pieces, and copies every block
twice: into staging at the source and out of it at the destination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from xpyd.economics.cost import LinkModel, LinkPoint, fit_link
from xpyd.units import format_s


@dataclass(frozen=True)
class PieceCosts:
    """What a piece and a copy cost here: the fitted link, and seconds to gather and to scatter one block of a layer."""

    link: LinkModel
    gather_cell_s: float
    scatter_cell_s: float


@dataclass(frozen=True)
class Choice:
    """Predicted seconds of both ways, and which is taken; ``reason`` is for people."""

    staged: bool
    direct_s: float
    staged_s: float
    reason: str


def fit_pieces(pairs: Sequence[tuple[LinkPoint, LinkPoint]], default_bytes_per_s: float) -> LinkModel:
    """Alpha, gamma and bandwidth from hand-offs of the same bytes, (in few pieces, in many), each pair timed together.

    Gamma is the median of what a pair's second costs more, by piece: noise that lasts longer than a pair cancels. The
    rest is fitted to the firsts. ``default_bytes_per_s`` is taken where their times do not grow with bytes.
    """
    more = [(few, many) for few, many in pairs if many.num_descriptors > few.num_descriptors]
    steps = [(many.seconds - few.seconds) / (many.num_descriptors - few.num_descriptors) for few, many in more]
    gamma_s = max(0.0, median(steps)) if steps else 0.0
    bare = [
        LinkPoint(few.num_bytes, 0, max(few.seconds - gamma_s * few.num_descriptors, few.seconds / 10))
        for few, _ in pairs
    ]
    try:
        fitted = fit_link(bare).model
    except ValueError:
        return LinkModel(median(point.seconds for point in bare), gamma_s, default_bytes_per_s)
    return LinkModel(fitted.alpha_s, gamma_s, fitted.bytes_per_s)


def choose(costs: PieceCosts, num_bytes: int, num_direct: int, num_staged: int, num_cells: int) -> Choice:
    """The faster way for ``num_bytes`` in ``num_cells`` blocks: ``num_direct`` pieces as they lie, or ``num_staged``.

    ``transfer_s = alpha + gamma * pieces + bytes / bandwidth``, and for the staged way two copies of every cell, which
    the model does not overlap with the wire: staging has to win by its pieces.
    """
    copies_s = num_cells * (costs.gather_cell_s + costs.scatter_cell_s)
    direct_s = costs.link.transfer_s(num_bytes, num_direct)
    staged_s = costs.link.transfer_s(num_bytes, num_staged) + copies_s
    saved_s = costs.link.gamma_s * (num_direct - num_staged)
    reason = (
        f"{num_direct - num_staged} pieces fewer save {format_s(max(0.0, saved_s))}, copies cost {format_s(copies_s)}"
    )
    return Choice(staged_s < direct_s, direct_s, staged_s, reason)
