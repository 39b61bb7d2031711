"""Send blocks as they lie, or gather them first? Decided per hand-off from fitted costs, with the reason kept.

The direct transfer pays ``gamma`` for every piece; the staged one pays it for fewer pieces, and copies every block
twice: into staging at the source and out of it at the destination.
"""

from __future__ import annotations

from dataclasses import dataclass

from xpyd.economics.cost import LinkModel
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
