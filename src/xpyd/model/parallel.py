"""What the ranks of a tensor-parallel instance do together: sum partial products, and join the logits.

Two sums per layer and one join per step (arXiv:1909.08053). Sums over ranks are taken in another order than inside one
matrix product, so logits equal those of one rank within float32 rounding, not bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch

from xpyd.model.shard import Shard


class Reducer(Protocol):
    """The ranks of one instance, seen from one of them; a ``group.Group`` is one. Every method is collective."""

    shard: Shard

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' ``x``, the same on each of them; shape and dtype of ``x``."""

    def join(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """All ranks' columns side by side, [num_rows, num_columns], on the leader; ``x`` itself on followers."""
