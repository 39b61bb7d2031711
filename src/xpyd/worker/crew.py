"""The ranks of a session that are left, and the collectives that it needs between blocks.

All go by messages to and from rank 0, each with a bound: MPI's own collectives would wait forever for a rank that is
stopped, and cannot be called any more once one is dead. Where a block ends, the client and its workers go on watching
each other while they wait: a rank that is lost there is found as soon as any other, not at the bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from xpyd.mpi import MPI
from xpyd.worker.pulse import Outcast

TAG = 7003
SLEEP_S = 1e-3
NOTE_S = 30.0  # between two notes of a wait without a bound


def no_watch() -> None:
    """For a wait in which nobody is watched."""


class Crew:
    """Collective to create. ``lost`` says why, by rank; every rank that is left knows it after the next exchange.

    ``on_loss`` is called at rank 0 for a rank that an exchange has missed, with the reason and for how long it waited;
    what it returns is kept as the reason. ``on_wait`` is called there now and then in a wait without a bound, with the
    ranks that have not come and the seconds so far.
    """

    def __init__(
        self,
        comm: Any,
        patience_s: float,
        on_loss: Callable[[int, str, float], str],
        on_wait: Callable[[list[int], float], None],
    ) -> None:
        self._comm = comm.Dup()
        self._patience_s = patience_s
        self._on_loss = on_loss
        self._on_wait = on_wait
        self._replies: list[Any] = []  # until they are complete
        self._ended: set[int] = set()
        self.lost: dict[int, str] = {}

    @property
    def ranks(self) -> list[int]:
        return [rank for rank in range(self._comm.size) if rank not in self.lost]

    @property
    def losses(self) -> str:
        """Why each lost rank is, in words for an error."""
        return "; ".join(self.lost.values())

    def gather(self, value: Any, attend: Callable[[], None] = no_watch) -> list[Any] | None:
        """The values by rank at rank 0, None for a lost one; None elsewhere.

        ``attend`` is called while this rank waits: the client's may add to ``lost``, and nobody waits for those.
        """
        found: list[Any] | None = self._exchange(value, lambda values: None, attend=attend)[0]
        return found

    def bcast(self, value: Any) -> Any:
        """Rank 0's value."""
        return self._exchange(value, lambda values: values[0])[1]

    def wait(self, patient: bool = False) -> None:
        """A barrier that sleeps; ``patient``: without a bound."""
        self._exchange(None, lambda values: None, None if patient else self._patience_s)

    def _exchange(
        self,
        value: Any,
        answer: Callable[[list[Any]], Any],
        patience_s: float | None = 0.0,
        attend: Callable[[], None] = no_watch,
    ) -> Any:
        """(all values, the answer) at rank 0, (None, the answer) elsewhere."""
        patience_s = self._patience_s if patience_s == 0.0 else patience_s
        if self._comm.rank == 0:
            expected = self.ranks[1:]
            values = self._collect(value, patience_s, attend)
            reply = (answer(values), self.lost)
            self._replies = [request for request in self._replies if not self._over(request)]
            for rank in expected:  # those too that are lost by now: a stopped one may wake
                self._reply(rank, reply)
            return values, reply[0]
        self._replies = [self._comm.isend(value, dest=0, tag=TAG)]
        answered, self.lost = self._await_answer(None if patience_s is None else 3 * patience_s, attend)
        if self._comm.rank in self.lost:
            raise Outcast(f"rank {self._comm.rank} came too late, and the others go on without it")
        return None, answered

    def _collect(self, value: Any, patience_s: float | None, attend: Callable[[], None]) -> list[Any]:
        values: list[Any] = [value, *[None] * (self._comm.size - 1)]
        missing = set(self.ranks[1:])
        begin_s = time.monotonic()
        noted_s = begin_s
        while missing:
            for rank in sorted(missing):
                try:
                    if self._comm.iprobe(source=rank, tag=TAG):
                        values[rank] = self._comm.recv(source=rank, tag=TAG)
                        missing.remove(rank)
                except MPI.Exception:
                    self._ended.add(rank)
                    self._lose({rank}, "its process has ended", begin_s)
            if missing and patience_s is not None and time.monotonic() - begin_s > patience_s:
                self._lose(missing, f"it did not come to a barrier within {patience_s:g} s of the client", begin_s)
            attend()
            missing -= self.lost.keys()
            if missing and patience_s is None and time.monotonic() - noted_s > NOTE_S:
                noted_s = time.monotonic()
                self._on_wait(sorted(missing), noted_s - begin_s)
            time.sleep(SLEEP_S)
        return values

    def _lose(self, ranks: Iterable[int], why: str, begin_s: float) -> None:
        for rank in sorted(set(ranks) - self.lost.keys()):
            self.lost[rank] = self._on_loss(rank, why, time.monotonic() - begin_s)

    def _reply(self, rank: int, reply: Any) -> None:
        if rank in self._ended:
            return
        try:
            self._replies.append(self._comm.isend(reply, dest=rank, tag=TAG))
        except MPI.Exception:  # its process has ended since
            self._ended.add(rank)

    def _await_answer(self, bound_s: float | None, attend: Callable[[], None]) -> Any:
        """Raises TimeoutError where rank 0 stays silent, and what ``attend`` raises."""
        request = self._comm.irecv(1 << 16, source=0, tag=TAG)
        begin_s = time.monotonic()
        while True:
            done, answer = request.test()
            if done:
                return answer
            if bound_s is not None and time.monotonic() - begin_s > bound_s:
                raise TimeoutError(f"rank {self._comm.rank}: no answer from the client for {bound_s:.0f} s")
            attend()
            time.sleep(SLEEP_S)

    @staticmethod
    def _over(request: Any) -> bool:
        try:
            return bool(request.Test())
        except MPI.Exception:  # to a rank whose process has ended
            return True
