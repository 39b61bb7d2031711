"""Control messages over MPI: non-blocking both ways, nothing waits, nothing is lost.

MPI carries these few hundred bytes; KV never goes this way (unless the ``mpi`` transport is chosen, which has a
communicator of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from xpyd.mpi import MPI
from xpyd.worker.messages import AnyMessage, Message, decode, encode

TAG = 7002


class Mailbox:
    """Sends and polls control messages on a communicator of its own (collective to create)."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm.Dup()
        self._sending: list[tuple[Any, bytes]] = []  # a buffer lives until its send is complete
        self._status = MPI.Status()

    def send(self, rank: int, message: Message) -> None:
        """Send without waiting; completes as the mailbox is polled."""
        self.send_all((rank,), message)

    def send_all(self, ranks: Iterable[int], message: Message) -> None:
        """The same message to each rank, encoded once."""
        data = encode(message)
        for rank in ranks:
            self._sending.append((self._comm.Isend([data, MPI.BYTE], dest=rank, tag=TAG), data))

    def poll(self) -> Iterator[tuple[int, AnyMessage]]:
        """Every message that is here now, with its sender, in the order of arrival."""
        if self._sending:
            self._sending = [pair for pair in self._sending if not pair[0].Test()]
        while self._comm.Iprobe(source=MPI.ANY_SOURCE, tag=TAG, status=self._status):
            source = self._status.Get_source()
            data = bytearray(self._status.Get_count(MPI.BYTE))
            self._comm.Recv([data, MPI.BYTE], source=source, tag=TAG)
            yield source, decode(data)

    def drain(self) -> None:
        """Complete every send; call it when all peers are known to receive."""
        for request, _ in self._sending:
            request.Wait()
        self._sending.clear()

    def close(self) -> None:
        self._comm.Free()
