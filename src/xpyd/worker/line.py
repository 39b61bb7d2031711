"""A message to one rank that is sent again and again, changed in place: MPI prepares it once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from xpyd import native
from xpyd.mpi import MPI, address_of
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
    """``note`` is told of every MPI error; what is sent to a rank that has ended is lost without one.

    ``tell``: C's function that sends the message and looks into ``inbox`` (``xpyd_tell``), and what it takes. None
    where that was not compiled, MPI's functions are not found, or the message goes in pieces.
    """

    def __init__(
        self, comm: Any, rank: int, tag: int, data: bytes, note: Callable[[Any], None], inbox: native.Inbox | None
    ) -> None:
        self.rank = rank
        self._page = bytearray(data)  # its owner writes into it at any time; copies of it are sent
        copies = [bytearray(len(data)) for _ in range(NUM_COPIES)]
        self._copies = [
            (copy, [comm.Send_init([piece, MPI.BYTE], dest=rank, tag=tag) for piece in cut(copy)]) for copy in copies
        ]
        self._left = 0  # messages that are known to have left
        self._note = note
        self._c = native.Line(num_bytes=len(data), num_copies=NUM_COPIES, page=self.address)
        self.tell = self._for_c(inbox)

    def load(self, data: bytes) -> None:
        """Another message, of as many bytes."""
        self._page[:] = data

    @property
    def address(self) -> int:
        return _address(self._page)

    @property
    def num_bytes(self) -> int:
        return len(self._page)

    def room(self, most: int = 1) -> int:
        """How many can be sent now, ``most`` at most. Looks at MPI only where so many copies may not be free."""
        self._see()
        if self._num_free < most:
            self._look()
        return min(most, self._num_free)

    def quiet(self) -> bool:
        """Whether all that was sent has left."""
        self._see()
        self._look()
        return self._num_free == NUM_COPIES

    def send(self) -> None:
        """Send the message as it is now, without waiting; there must be ``room``."""
        copy, requests = self._copies[self._c.num_sent % NUM_COPIES]
        copy[:] = self._page
        self._c.num_sent += 1
        for request in requests:
            try:
                request.Start()
            except MPI.Exception as error:
                self._note(error)

    def close(self) -> None:
        for _, requests in self._copies:
            for request in requests:
                request.Free()

    @property
    def _num_free(self) -> int:
        return int(NUM_COPIES - (self._c.num_sent - self._left))

    def _look(self) -> None:
        while self._left < self._c.num_sent:
            _, requests = self._copies[self._left % NUM_COPIES]
            if not all(has_left(request, self._note) for request in requests):
                return
            self._left += 1

    def _see(self) -> None:
        """What MPI said of a send in C."""
        if self._c.error:
            error, self._c.error = self._c.error, 0
            self._note(MPI.Exception(error))

    def _for_c(self, inbox: native.Inbox | None) -> tuple[int, int] | None:
        kernels, start = native.kernels(), address_of("MPI_Start")
        if kernels is None or inbox is None or start is None or any(len(requests) > 1 for _, requests in self._copies):
            return None
        addresses = ctypes.c_void_p * NUM_COPIES
        self._kept = (
            addresses(*[_address(copy) for copy, _ in self._copies]),
            addresses(*[MPI._addressof(requests[0]) for _, requests in self._copies]),
        )
        self._c.start, self._c.inbox = start, ctypes.pointer(inbox)
        self._c.copies, self._c.requests = map(ctypes.addressof, self._kept)
        function = ctypes.cast(kernels.xpyd_tell, ctypes.c_void_p).value
        assert function is not None
        return function, ctypes.addressof(self._c)


def _address(data: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(data))
