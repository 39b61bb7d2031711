"""Messages cut into pieces and put together again are the same messages."""

from __future__ import annotations

import pytest

from xpyd.worker.pieces import PIECE_BYTES, Pieces, cut

LENGTHS = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * PIECE_BYTES + 7)


def message(num_bytes: int, first: int = 0) -> bytes:
    return bytes((first + i) % 251 for i in range(num_bytes))


@pytest.mark.parametrize("num_bytes", LENGTHS)
def test_a_message_comes_whole_with_its_last_piece(num_bytes: int) -> None:
    pieces = Pieces()
    *before, last = (bytearray(piece) for piece in cut(message(num_bytes)))
    assert [pieces.add(0, piece) for piece in before] == [None] * (num_bytes // PIECE_BYTES)
    assert pieces.add(0, last) == message(num_bytes)
    assert pieces.add(0, bytearray(b"next")) == b"next", "nothing of one message is in the next"


def test_messages_of_two_sources_are_apart() -> None:
    pieces = Pieces()
    ways = {source: [bytearray(piece) for piece in cut(message(2 * PIECE_BYTES + 5, source))] for source in (3, 4)}
    found = {}
    for of_three, of_four in zip(ways[3], ways[4], strict=True):
        found |= {source: pieces.add(source, piece) for source, piece in ((3, of_three), (4, of_four))}
    assert found == {source: message(2 * PIECE_BYTES + 5, source) for source in (3, 4)}


def test_pieces_share_the_memory_of_their_message() -> None:
    """A line changes its message in place, and its pieces are what is sent."""
    page = bytearray(message(2 * PIECE_BYTES))
    *_, second, _ = cut(page)
    page[PIECE_BYTES] = 255
    assert second[0] == 255
