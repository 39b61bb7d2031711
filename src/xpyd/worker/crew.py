"""The ranks of a session that are left, and the collectives that it needs between blocks.

All go by messages to and from rank 0, each with a bound: MPI's own collectives would wait forever for a rank that is
stopped, and cannot be called any more once one is dead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from xpyd.mpi import MPI
from xpyd.worker.pulse import Outcast

TAG = 7003
SLEEP_S = 1e-3


class Crew:
    """Collective to create. ``lost`` says why, by rank; every rank that is left knows it after the next exchange."""

    def __init__(self, comm: Any, patience_s: float) -> None:
        self._comm = comm.Dup()
        self._patience_s = patience_s
        self._replies: list[Any] = []  # until they are complete
        self._ended: set[int] = set()
        self.lost: dict[int, str] = {}

    @property
    def ranks(self) -> list[int]:
        return [rank for rank in range(self._comm.size) if rank not in self.lost]

    def gather(self, value: Any) -> list[Any] | None:
        """The values by rank at rank 0, None for a lost one; None elsewhere."""
        found: list[Any] | None = self._exchange(value, lambda values: None)[0]
        return found

    def bcast(self, value: Any) -> Any:
        """Rank 0's value."""
        return self._exchange(value, lambda values: values[0])[1]

    def wait(self, patient: bool = False) -> None:
        """A barrier that sleeps; ``patient``: without a bound."""
        self._exchange(None, lambda values: None, None if patient else self._patience_s)

    def _exchange(self, value: Any, answer: Callable[[list[Any]], Any], patience_s: float | None = 0.0) -> Any:
        """(all values, the answer) at rank 0, (None, the answer) elsewhere."""
        patience_s = self._patience_s if patience_s == 0.0 else patience_s
        if self._comm.rank == 0:
            expected = self.ranks[1:]
            values = self._collect(value, patience_s)
            reply = (answer(values), self.lost)
            self._replies = [request for request in self._replies if not self._over(request)]
            self._replies += [
                self._comm.isend(reply, dest=rank, tag=TAG) for rank in expected if rank not in self._ended
            ]
            return values, reply[0]
        self._replies = [self._comm.isend(value, dest=0, tag=TAG)]
        answered, self.lost = self._await_answer(None if patience_s is None else 3 * patience_s)
        if self._comm.rank in self.lost:
            raise Outcast(f"rank {self._comm.rank} came too late, and the others go on without it")
        return None, answered

    def _collect(self, value: Any, patience_s: float | None) -> list[Any]:
        values: list[Any] = [value, *[None] * (self._comm.size - 1)]
        missing = set(self.ranks[1:])
        begin_s = time.monotonic()
        while missing:
            for rank in sorted(missing):
                try:
                    if self._comm.iprobe(source=rank, tag=TAG):
                        values[rank] = self._comm.recv(source=rank, tag=TAG)
                        missing.remove(rank)
                except MPI.Exception:
                    self.lost[rank] = "its process has ended"
                    self._ended.add(rank)
                    missing.remove(rank)
            if missing and patience_s is not None and time.monotonic() - begin_s > patience_s:
                self.lost |= dict.fromkeys(missing, f"it did not end the block within {patience_s:.0f} s of the client")
                break
            time.sleep(SLEEP_S)
        return values

    def _await_answer(self, bound_s: float | None) -> Any:
        """Raises TimeoutError where rank 0 stays silent."""
        request = self._comm.irecv(1 << 16, source=0, tag=TAG)
        begin_s = time.monotonic()
        while True:
            done, answer = request.test()
            if done:
                return answer
            if bound_s is not None and time.monotonic() - begin_s > bound_s:
                raise TimeoutError(f"rank {self._comm.rank}: no answer from the client for {bound_s:.0f} s")
            time.sleep(SLEEP_S)

    @staticmethod
    def _over(request: Any) -> bool:
        try:
            return bool(request.Test())
        except MPI.Exception:  # to a rank whose process has ended
            return True
