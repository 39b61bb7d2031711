"""The ranks of one instance: what they do together, over MPI or over torch.distributed.

MPI moves host memory, and is what is used there by default. torch.distributed is NCCL between GPUs, and gloo between
CPUs; MPI brings its ranks together all the same, and carries plain numbers and objects. ``parallel.Reducer``,
``context.Gatherer`` and ``exchange.Exchange`` are the parts of a group that one way of dividing the work needs.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from xpyd.model.exchange import Pending
from xpyd.model.meter import Meter
from xpyd.model.shard import Shard


class Group(ABC):
    """Seen from one of its ranks, leader first. Every method is collective but ``send`` and ``receive``.

    ``meter`` counts all that is exchanged, ``num_to[r]`` the bytes of ``start`` that went to rank r. ``comm`` is the
    MPI communicator of its ranks.
    """

    def __init__(self, comm: Any) -> None:
        self.comm = comm
        self.shard = Shard(comm.rank, comm.size)
        self.rank: int = comm.rank
        self.width: int = comm.size
        self.meter = Meter()
        self.num_to = [0] * comm.size

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' ``x``, the same on each of them; shape and dtype of ``x``."""
        with self.meter.timed(x.nbytes):
            return self._sum(x)

    def scatter_sum(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """This rank's ``counts[rank]`` rows of that sum, rank by rank; ``x`` [sum(counts), width] on each of them."""
        with self.meter.timed(x.nbytes):
            return self._scatter_sum(x, counts)

    def gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """The ``counts[rank]`` rows of every rank, [sum(counts), width], from this rank's [counts[rank], width]."""
        with self.meter.timed(rows.nbytes):
            return self._gather(rows.contiguous(), counts)

    def join(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        """All ranks' columns side by side, [num_rows, num_columns], on the leader; ``x`` itself on followers."""
        counts = [len(Shard(rank, self.width).part(num_columns)) for rank in range(self.width)]
        with self.meter.timed(x.nbytes):
            joined = self._collect(x.t().contiguous(), counts)  # transposed, ranks lie one behind the other
        return x if joined is None else joined.t()

    def counts(self, sending: Sequence[int]) -> list[int]:
        """Rows that each rank will send here, where this one sends ``sending[r]`` to rank r."""
        mine = torch.tensor(sending, dtype=torch.int64)
        theirs = torch.empty_like(mine)
        with self.meter.timed():
            wait(self.comm.Ialltoall(mine.numpy(), theirs.numpy()))
        received: list[int] = theirs.tolist()
        return received

    def start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending:
        """Begin to send ``rows`` [sum(sending), row bytes] uint8, those for rank 0 first."""
        for rank, number in enumerate(sending):
            self.num_to[rank] += number * rows.shape[1]
        with self.meter.timed(rows.nbytes):
            return self._start(rows.contiguous(), sending, receiving)

    @abstractmethod
    def send(self, x: torch.Tensor, to: int) -> Pending:
        """Begin to send a contiguous ``x``; it is not to be written before that has ended."""

    @abstractmethod
    def receive(self, x: torch.Tensor, source: int) -> Pending:
        """Begin to receive into a contiguous ``x``, in the order in which ``source`` sends."""

    @abstractmethod
    def _sum(self, x: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _scatter_sum(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor: ...

    @abstractmethod
    def _gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor: ...

    @abstractmethod
    def _collect(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor | None:
        """As ``_gather``, on the leader; None elsewhere."""

    @abstractmethod
    def _start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending: ...


def wait(request: Any, idle: Callable[[], None] | None = None) -> None:
    """Until an MPI request has ended; ``idle`` is called over and over meanwhile.

    Yields the core to whoever works: where ranks outnumber cores, a spinning one holds up the rank that it waits for.
    """
    while not request.Test():
        if idle is not None:
            idle()
        os.sched_yield()
