"""Messages in pieces that MPI sends at once, whoever looks when: a long message is no hand-shake. Pure."""

from __future__ import annotations

from collections.abc import Iterator

# Open MPI sends up to 4 KiB at once in shared memory, header and all, other wires and libraries more.
PIECE_BYTES = 3584


def cut(data: bytes | bytearray) -> Iterator[memoryview]:
    """The pieces of a message, which share its memory: full ones, and one that is not full and so the last."""
    view = memoryview(data)
    for begin in range(0, len(data) + 1, PIECE_BYTES):
        yield view[begin : begin + PIECE_BYTES]


class Pieces:
    """Puts messages together again. Pieces of one source come in the order in which they were sent."""

    def __init__(self) -> None:
        self._begun: dict[int, bytearray] = {}  # by source

    def add(self, source: int, piece: bytearray) -> bytearray | None:
        """The message that ``piece`` completes; None where more of it is to come."""
        is_last = len(piece) < PIECE_BYTES
        if source not in self._begun:
            if is_last:
                return piece
            self._begun[source] = bytearray()
        self._begun[source] += piece
        return self._begun.pop(source) if is_last else None
