"""What the ranks of a tensor-parallel instance do together: sum partial products, and join the logits.

Two sums per layer and one join per step (arXiv:1909.08053). Sums over ranks are taken in another order than inside one
matrix product, so logits equal those of one rank within float32 rounding, not bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from xpyd.model.meter import Meter
from xpyd.model.shard import Shard


class Reducer(Protocol):
    """The ranks of one instance, seen from one of them. Every method is collective."""

    shard: Shard

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' ``x``, the same on each of them; shape and dtype of ``x``."""

    def join(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """All ranks' columns side by side, [num_rows, num_columns], on the leader; ``x`` itself on followers."""


class MpiReducer:
    """Over an MPI communicator of the instance's ranks, leader first. Host memory only.

    Halves are summed in float32 and rounded once: numpy has no bfloat16, and MPI no sum of it. While it waits a rank
    yields its core: where ranks outnumber cores, a spinning one holds up the rank that it waits for.
    """

    def __init__(self, comm: Any) -> None:
        self.shard = Shard(comm.rank, comm.size)
        self._comm = comm

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        mine = x.float().contiguous()
        total = torch.empty_like(mine)
        _wait(self._comm.Iallreduce(mine.numpy(), total.numpy()))
        return total.to(x.dtype)

    def join(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        mine = x.t().contiguous()  # transposed, ranks lie one behind the other
        if self.shard.rank:
            _wait(self._comm.Igatherv(mine.numpy(), None))
            return x
        joined = mine.new_empty((num_columns, x.shape[0]))
        parts = (Shard(rank, self.shard.width).part(num_columns) for rank in range(self.shard.width))
        _wait(self._comm.Igatherv(mine.numpy(), [joined.numpy(), [len(part) * x.shape[0] for part in parts]]))
        return joined.t()


def reducer_of(comm: Any, ranks: Sequence[int]) -> MpiReducer | None:
    """The reducer of the instance of these ranks of ``comm``, None for one rank alone. Collective among them."""
    if len(ranks) == 1:
        return None
    return MpiReducer(comm.Create_group(comm.group.Incl(list(ranks)), ranks[0]))


def _wait(request: Any) -> None:
    while not request.Test():
        os.sched_yield()


class TimedReducer:
    """Another reducer, with what it cost so far."""

    def __init__(self, inner: Reducer) -> None:
        self.shard = inner.shard
        self.meter = Meter()
        self._inner = inner

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        with self.meter.timed(x.nbytes):
            return self._inner.sum(x)

    def join(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        with self.meter.timed(x.nbytes):
            return self._inner.join(x, num_columns)
