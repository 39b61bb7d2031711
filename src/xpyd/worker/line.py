"""A message to one rank that is sent again and again, changed in place: MPI prepares it once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from xpyd.mpi import MPI
from xpyd.worker.pieces import cut

NUM_COPIES = 32  # on their way: in shared memory a message has left once the other rank has looked, which may be asleep


def has_left(request: Any, note: Callable[[Any], None]) -> bool:
    """Whether a send is complete; of one to a rank that has ended ``note`` is told, and it is."""
    try:
        return bool(request.Test())
    except MPI.Exception as error:
        note(error)
        return True


class Line:
    """``note`` is told of every MPI error; what is sent to a rank that has ended is lost without one."""

    def __init__(self, comm: Any, rank: int, tag: int, data: bytes, note: Callable[[Any], None]) -> None:
        self.rank = rank
        self._page = bytearray(data)  # its owner writes into it at any time; copies of it are sent
        copies = [bytearray(len(data)) for _ in range(NUM_COPIES)]
        self._copies = [
            (copy, [comm.Send_init([piece, MPI.BYTE], dest=rank, tag=tag) for piece in cut(copy)]) for copy in copies
        ]
        self._sent, self._left = 0, 0  # numbers of messages; those that are known to have left
        self._note = note

    def load(self, data: bytes) -> None:
        """Another message, of as many bytes."""
        self._page[:] = data

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._page))

    @property
    def num_bytes(self) -> int:
        return len(self._page)

    def free(self) -> bool:
        """Whether one more can be sent now. Looks at MPI only when as many as there are copies may be on their way."""
        if self._sent - self._left == NUM_COPIES:
            self._look()
        return self._sent - self._left < NUM_COPIES

    def quiet(self) -> bool:
        """Whether all that was sent has left."""
        self._look()
        return self._sent == self._left

    def send(self) -> None:
        """Send the message as it is now, without waiting; the line must be ``free``."""
        copy, requests = self._copies[self._sent % NUM_COPIES]
        copy[:] = self._page
        self._sent += 1
        for request in requests:
            try:
                request.Start()
            except MPI.Exception as error:
                self._note(error)

    def close(self) -> None:
        for _, requests in self._copies:
            for request in requests:
                request.Free()

    def _look(self) -> None:
        while self._left < self._sent:
            _, requests = self._copies[self._left % NUM_COPIES]
            if not all(has_left(request, self._note) for request in requests):
                return
            self._left += 1
