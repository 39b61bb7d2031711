"""A group of ranks over an MPI communicator: host memory only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from xpyd.model.exchange import Pending
from xpyd.model.group import Group, wait
from xpyd.model.meter import Meter

TAG = 0


class MpiGroup(Group):
    """Rows go as bytes. Halves are summed in float32 and rounded once: MPI has no sum of bfloat16."""

    def send(self, x: torch.Tensor, to: int) -> Pending:
        with self.meter.timed(x.nbytes):
            return _MpiPending(self.comm.Isend(_bytes(x), dest=to, tag=TAG), x, self.meter)

    def receive(self, x: torch.Tensor, source: int) -> Pending:
        return _MpiPending(self.comm.Irecv(_bytes(x), source=source, tag=TAG), x, self.meter)

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        mine = x.float().contiguous()
        total = torch.empty_like(mine)
        wait(self.comm.Iallreduce(mine.numpy(), total.numpy()))
        return total.to(x.dtype)

    def _scatter_sum(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        mine = x.float().contiguous()
        own = mine.new_empty((counts[self.rank], x.shape[1]))
        wait(self.comm.Ireduce_scatter(mine.numpy(), own.numpy(), [count * x.shape[1] for count in counts]))
        return own.to(x.dtype)

    def _gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        every = rows.new_empty((sum(counts), rows.shape[1]))
        wait(self.comm.Iallgatherv(_bytes(rows), [_bytes(every), _sizes(rows, counts)]))
        return every

    def _collect(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor | None:
        if self.rank:
            wait(self.comm.Igatherv(_bytes(rows), None))
            return None
        every = rows.new_empty((sum(counts), rows.shape[1]))
        wait(self.comm.Igatherv(_bytes(rows), [_bytes(every), _sizes(rows, counts)]))
        return every

    def _start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending:
        landed = rows.new_empty((sum(receiving), rows.shape[1]))
        request = self.comm.Ialltoallv(
            [_bytes(rows), _sizes(rows, sending)], [_bytes(landed), _sizes(landed, receiving)]
        )
        return _MpiPending(request, landed, self.meter, rows)


class _MpiPending:
    def __init__(self, request: Any, landed: torch.Tensor, meter: Meter, sent: torch.Tensor | None = None) -> None:
        self._request = request
        self._landed = landed
        self._meter = meter
        self._sent = sent  # alive until it has left

    def progress(self) -> bool:
        return bool(self._request.Test())

    def finish(self, idle: Callable[[], None] | None = None) -> torch.Tensor:
        with self._meter.timed():
            wait(self._request, idle)
        return self._landed


def _sizes(rows: torch.Tensor, counts: Sequence[int]) -> list[int]:
    """Bytes of so many rows."""
    return [count * rows.shape[1] * rows.element_size() for count in counts]


def _bytes(x: torch.Tensor) -> Any:
    """The memory of a contiguous tensor, whatever its dtype is: numpy has no bfloat16."""
    return x.reshape(-1).view(torch.uint8).numpy()
