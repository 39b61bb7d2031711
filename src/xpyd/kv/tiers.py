"""Fetch or compute again: what a block costs from a lower tier against what its tokens cost to compute.

A preempted or evicted sequence is *swapped* where its blocks come back from a tier, and *recomputed* where they do not:
it is the same choice, by the same figures. Pure; the models are those of ``economics.cost``, fitted on the run's ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from xpyd.economics.cost import ComputeModel, LinkModel


@dataclass(frozen=True)
class FetchCosts:
    """One tier as seen from one instance. ``block_bytes`` are of all layers; the link's bytes include its pieces."""

    compute: ComputeModel
    link: LinkModel
    block_size: int
    block_bytes: int

    def recompute_s(self, start: int, num_blocks: int) -> float:
        """Seconds that computing these blocks adds to a prompt whose first ``start`` tokens have KV.

        The step's base is left out: the tokens behind them have to be computed in any case.
        """
        return self.compute.chunk_s(num_blocks * self.block_size, start)

    def fetch_s(self, num_blocks: int) -> float:
        """Seconds to bring them here: alpha, and bytes over bandwidth."""
        return self.link.transfer_s(num_blocks * self.block_bytes)

    def __call__(self, start: int, num_blocks: int) -> bool:
        """True where fetching is the cheaper of the two."""
        return self.fetch_s(num_blocks) < self.recompute_s(start, num_blocks)
