"""Rank 1 tells rank 0 messages of three lengths by lines, each changed in place; rank 0 checks all, and their order.

Usage (under mpirun -n 2): python -m mpi4py lines.py
"""

from __future__ import annotations

import ctypes

from xpyd.mpi import MPI
from xpyd.worker.line import NUM_COPIES
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import Emitted, Tokens

LENGTHS = (1, 40, 400)  # tokens of each kind: of a few bytes, of one piece, and of two
NUM_KINDS = len(LENGTHS)
NUM_MESSAGES = 5 * NUM_COPIES * NUM_KINDS // 2


def message(number: int) -> Tokens:
    return Tokens.of(number, [Emitted(i, number, 7, 0.5) for i in range(LENGTHS[number % NUM_KINDS])])


def tell(mailbox: Mailbox) -> None:
    lines = [mailbox.line(0, message(kind)) for kind in range(NUM_KINDS)]
    for number in range(NUM_MESSAGES):
        line = lines[number % NUM_KINDS]
        assert line is not None
        if number < NUM_KINDS * NUM_COPIES:
            assert line.free(), f"message {number} waits, and rank 0 need not have looked"
        while not line.free():
            mailbox.poll()
        stamp = ctypes.c_int64.from_address(
            line.address + line.num_bytes - Tokens.num_bytes(LENGTHS[number % NUM_KINDS])
        )
        stamp.value = number
        line.send()
    mailbox.drain()
    assert all(line.quiet() for line in lines if line is not None)


def hear(mailbox: Mailbox) -> None:
    heard: list[int] = []
    while len(heard) < NUM_MESSAGES:
        for source, found in mailbox.poll():
            assert source == 1
            assert isinstance(found, Tokens)
            number = found.emitted_ns
            heard.append(number)
            assert len(list(found.tokens)) == LENGTHS[number % NUM_KINDS]
    assert heard == list(range(NUM_MESSAGES))


def main() -> None:
    comm = MPI.COMM_WORLD
    mailbox = Mailbox(comm)
    hear(mailbox) if comm.rank == 0 else tell(mailbox)
    comm.Barrier()
    mailbox.close()


if __name__ == "__main__":
    main()
