"""Rows of bytes between all ranks of an instance, each rank to each: dispatch and combine of expert parallelism.

An exchange is started and finished later, so that its ranks compute in between. Over MPI nothing moves by itself:
``progress`` is to be called while computing. NCCL moves data on a stream of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from xpyd.model.meter import Meter


class Pending(Protocol):
    """Rows on their way."""

    def progress(self) -> bool:
        """Let them move on; True when all are there."""

    def finish(self) -> torch.Tensor:
        """What came, [number of rows received, row bytes] uint8, in the order of the ranks that sent it."""


class Exchange(Protocol):
    """The ranks of one instance, seen from one of them. ``num_to[r]`` counts the bytes that went to rank r."""

    rank: int
    width: int
    meter: Meter
    num_to: list[int]

    def counts(self, sending: Sequence[int]) -> list[int]:
        """Rows that each rank will send here, where this one sends ``sending[r]`` to rank r. Collective."""

    def start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending:
        """Begin to send ``rows`` [sum(sending), row bytes] uint8, those for rank 0 first. Collective."""


class MpiExchange:
    """Over an MPI communicator of the instance's ranks. Host memory only."""

    def __init__(self, comm: Any) -> None:
        self.rank: int = comm.rank
        self.width: int = comm.size
        self.meter = Meter()
        self.num_to = [0] * comm.size
        self._comm = comm

    def counts(self, sending: Sequence[int]) -> list[int]:
        mine = torch.tensor(sending, dtype=torch.int64)
        theirs = torch.empty_like(mine)
        with self.meter.timed():
            _MpiPending(self._comm.Ialltoall(mine.numpy(), theirs.numpy()), theirs, self.meter).wait()
        received: list[int] = theirs.tolist()
        return received

    def start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending:
        size = rows.shape[1]
        count(self, sending, size)
        rows = rows.contiguous()
        landed = rows.new_empty((sum(receiving), size))
        with self.meter.timed(rows.nbytes):
            request = self._comm.Ialltoallv(
                [rows.numpy(), [number * size for number in sending]],
                [landed.numpy(), [number * size for number in receiving]],
            )
        return _MpiPending(request, landed, self.meter, rows)

    def sum(self, values: Sequence[int]) -> list[int]:
        """Each of them summed over all ranks. Collective."""
        mine = torch.tensor(values, dtype=torch.int64)
        total = torch.empty_like(mine)
        self._comm.Allreduce(mine.numpy(), total.numpy())
        found: list[int] = total.tolist()
        return found


class _MpiPending:
    def __init__(self, request: Any, landed: torch.Tensor, meter: Meter, sent: torch.Tensor | None = None) -> None:
        self._request = request
        self._landed = landed
        self._meter = meter
        self._sent = sent  # alive until it has left

    def progress(self) -> bool:
        return bool(self._request.Test())

    def wait(self) -> None:
        """Yields the core to whoever works, see ``parallel``."""
        while not self._request.Test():
            os.sched_yield()

    def finish(self) -> torch.Tensor:
        with self._meter.timed():
            self.wait()
        return self._landed


class TorchExchange:
    """Over torch.distributed: NCCL between GPUs, gloo between CPUs. The process group is the caller's.

    On a GPU the exchange runs beside the compute stream; ``finish`` makes that stream wait for it, not the CPU.
    """

    def __init__(self, group: Any, device: str) -> None:
        import torch.distributed as dist

        self.rank: int = dist.get_rank(group)
        self.width: int = dist.get_world_size(group)
        self.meter = Meter()
        self.num_to = [0] * self.width
        self._group = group
        self._device = device

    def counts(self, sending: Sequence[int]) -> list[int]:
        import torch.distributed as dist

        mine = torch.tensor(sending, dtype=torch.int64, device=self._device)
        theirs = torch.empty_like(mine)
        with self.meter.timed():
            dist.all_to_all_single(theirs, mine, group=self._group)
        received: list[int] = theirs.tolist()
        return received

    def start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending:
        import torch.distributed as dist

        count(self, sending, rows.shape[1])
        rows = rows.contiguous()
        landed = rows.new_empty((sum(receiving), rows.shape[1]))
        with self.meter.timed(rows.nbytes):
            work = dist.all_to_all_single(
                landed, rows, list(receiving), list(sending), group=self._group, async_op=True
            )
        return _TorchPending(work, landed, rows, self.meter)


class _TorchPending:
    def __init__(self, work: Any, landed: torch.Tensor, sent: torch.Tensor, meter: Meter) -> None:
        self._work = work
        self._landed = landed
        self._sent = sent
        self._meter = meter

    def progress(self) -> bool:
        return bool(self._work.is_completed())

    def finish(self) -> torch.Tensor:
        with self._meter.timed():
            self._work.wait()
        return self._landed


def count(exchange: Exchange, sending: Sequence[int], row_bytes: int) -> None:
    """Add what is about to be sent."""
    for rank, number in enumerate(sending):
        exchange.num_to[rank] += number * row_bytes
