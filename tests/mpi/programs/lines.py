"""Rank 1 tells rank 0 messages of three lengths by lines, each changed in place; rank 0 checks all, and their order.

Every other message that can be is sent by C. Then rank 0 answers now and then, which C's look must find, once.

Usage (under mpirun -n 2): python -m mpi4py lines.py
"""

from __future__ import annotations

import ctypes

from xpyd import native
from xpyd.mpi import MPI
from xpyd.worker.line import NUM_COPIES, Line
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import Beat, Emitted, EndBlock, Tokens

LENGTHS = (1, 40, 400)  # tokens of each kind: of a few bytes, of one piece, and of two
NUM_KINDS = len(LENGTHS)
NUM_MESSAGES = 5 * NUM_COPIES * NUM_KINDS // 2
NUM_ANSWERS = 5


def message(number: int) -> Tokens:
    return Tokens.of(number, [Emitted(i, number, 7, 0.5) for i in range(LENGTHS[number % NUM_KINDS])])


def send(line: Line, looks: bool = False) -> bool:
    """By C where that is possible: whether it has found something."""
    kernels = native.kernels()
    if kernels is None or line.tell is None:
        line.send()
        return False
    _, at = line.tell
    return bool(kernels.xpyd_tell(at, looks))


def tell(mailbox: Mailbox) -> None:
    lines = [mailbox.line(0, message(kind)) for kind in range(NUM_KINDS)]
    for number in range(NUM_MESSAGES):
        line = lines[number % NUM_KINDS]
        assert line is not None
        if number < NUM_KINDS * NUM_COPIES:
            assert line.room(), f"message {number} waits, and rank 0 need not have looked"
        while not line.room():
            mailbox.poll()
        stamp = ctypes.c_int64.from_address(
            line.address + line.num_bytes - Tokens.num_bytes(LENGTHS[number % NUM_KINDS])
        )
        stamp.value = number
        if number % 2:
            line.send()
        else:
            assert not send(line)
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


def look(mailbox: Mailbox) -> None:
    """Send and look, by C, until something has come: it is the answer, and there is no other."""
    line = mailbox.line(0, message(0))
    assert line is not None
    assert (line.tell is None) == (native.kernels() is None), "MPI's functions were not found"
    for _ in range(NUM_ANSWERS if line.tell is not None else 0):
        while not (line.room() and send(line, looks=True)):
            pass
        assert [found for _, found in mailbox.poll()] == [Beat()]
        assert list(mailbox.poll()) == []
        mailbox.send(0, Beat())
    mailbox.send(0, EndBlock(abort=False))
    mailbox.drain()


def answer(mailbox: Mailbox) -> None:
    """When some messages have come; after a beat the next answer is due."""
    num_heard = 0
    while True:
        for _, found in mailbox.poll():
            if isinstance(found, EndBlock):
                return
            num_heard = 0 if isinstance(found, Beat) else num_heard + 1
            if num_heard == 3:
                mailbox.send(1, Beat())


def main() -> None:
    comm = MPI.COMM_WORLD
    mailbox = Mailbox(comm)
    for act in (hear, answer) if comm.rank == 0 else (tell, look):
        act(mailbox)
        comm.Barrier()
    mailbox.close()


if __name__ == "__main__":
    main()
