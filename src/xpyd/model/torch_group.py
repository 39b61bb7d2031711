"""A group of ranks over torch.distributed: NCCL between GPUs, gloo between CPUs.

Ranks may have different numbers of rows, and these collectives want equal ones: rows are padded. On a GPU everything
runs on streams of its own, and the compute stream waits for it, not the CPU.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from xpyd.model.exchange import Pending
from xpyd.model.group import Group
from xpyd.model.meter import Meter

TIMEOUT = timedelta(minutes=10)
TAG = 0


class TorchGroup(Group):
    """A process group of its own, without a global one: a rank may be in several instances. Collective to create."""

    def __init__(self, comm: Any, backend: Literal["gloo", "nccl"]) -> None:
        super().__init__(comm)
        self._store = _meet(comm)
        self._processes: Any  # c10d's backends declare no types
        if backend == "nccl":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = TIMEOUT
            self._processes = dist.ProcessGroupNCCL(self._store, comm.rank, comm.size, options)
        else:
            self._processes = dist.ProcessGroupGloo(self._store, comm.rank, comm.size, TIMEOUT)

    def send(self, x: torch.Tensor, to: int) -> Pending:
        with self.meter.timed(x.nbytes):
            return _TorchPending(self._processes.send([x], to, TAG), x, self.meter, asks=False)

    def receive(self, x: torch.Tensor, source: int) -> Pending:
        return _TorchPending(self._processes.recv([x], source, TAG), x, self.meter, asks=False)

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        self._processes.allreduce([total]).wait()
        return total

    def _scatter_sum(self, x: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        padded = torch.nn.utils.rnn.pad_sequence(list(torch.split(x, list(counts))), batch_first=True)
        own = padded.new_empty(padded.shape[1:])
        self._processes._reduce_scatter_base(own, padded.flatten(0, 1)).wait()
        return own[: counts[self.rank]]

    def _gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        most = max(counts)
        padded = rows.new_zeros((most, rows.shape[1]))
        padded[: len(rows)] = rows
        every = rows.new_empty((most * self.width, rows.shape[1]))
        self._processes._allgather_base(every, padded).wait()
        return torch.cat([part[:count] for part, count in zip(torch.split(every, most), counts, strict=True)])

    def _collect(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor | None:
        every = self._gather(rows, counts)
        return None if self.rank else every

    def _start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending:
        landed = rows.new_empty((sum(receiving), rows.shape[1]))
        work = self._processes.alltoall_base(landed, rows, list(receiving), list(sending))
        return _TorchPending(work, landed, self.meter, rows)


class _TorchPending:
    def __init__(
        self, work: Any, landed: torch.Tensor, meter: Meter, sent: torch.Tensor | None = None, asks: bool = True
    ) -> None:
        """Without ``asks`` it is never asked whether it has ended: gloo's sends and receives do not know."""
        self._work = work
        self._landed = landed
        self._meter = meter
        self._sent = sent  # alive until it has left
        self._asks = asks

    def progress(self) -> bool:
        return self._asks and bool(self._work.is_completed())

    def finish(self, idle: Callable[[], None] | None = None) -> torch.Tensor:
        with self._meter.timed():
            self._work.wait()
        return self._landed


def _meet(comm: Any) -> Any:
    """A store at the leader, which every rank knows."""
    hosts = comm.allgather(socket.gethostname())
    host = "127.0.0.1" if len(set(hosts)) == 1 else hosts[0]
    store = None
    if comm.rank == 0:
        store = TCPStore(host, 0, comm.size, is_master=True, wait_for_workers=False)
    port = comm.bcast(store.port if store is not None else None)
    return store if store is not None else TCPStore(host, port, comm.size, is_master=False)
