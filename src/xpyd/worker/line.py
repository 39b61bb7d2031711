"""A message to one rank that is sent again and again from one buffer: MPI prepares it once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from xpyd.mpi import MPI


class Line:
    """``note`` is told of every MPI error; what is sent to a rank that has ended is lost without one."""

    def __init__(self, comm: Any, rank: int, tag: int, data: bytes, note: Callable[[Any], None]) -> None:
        self.rank = rank
        self._data = bytearray(data)  # its owner writes into it while the line is ``free``
        self._request = comm.Send_init([self._data, MPI.BYTE], dest=rank, tag=tag)
        self._note = note
        self.sending = False  # as far as was seen

    def load(self, data: bytes) -> None:
        """Another message, of as many bytes."""
        assert self.free, "the last message has not left yet"
        self._data[:] = data

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self._data))

    @property
    def num_bytes(self) -> int:
        return len(self._data)

    @property
    def free(self) -> bool:
        """Whether what was sent has left, and the buffer may be written."""
        self.sending = self.sending and not self._left()
        return not self.sending

    def send(self) -> None:
        """Send the buffer as it is without waiting; it must be ``free``."""
        try:
            self._request.Start()
            self.sending = not self._request.Test()  # a short message mostly has left by now
        except MPI.Exception as error:
            self._note(error)

    def close(self) -> None:
        self._request.Free()

    def _left(self) -> bool:
        try:
            return bool(self._request.Test())
        except MPI.Exception as error:
            self._note(error)
            return True
