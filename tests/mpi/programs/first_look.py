"""Rank 1 sends while rank 0 computes, which then looks once: it must find what has come.

Usage (under mpirun -n 2): python -m mpi4py first_look.py FOLDER
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from xpyd.mpi import MPI
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import Beat

NUM_MESSAGES = 5


def main() -> None:
    comm, folder = MPI.COMM_WORLD, Path(sys.argv[1])
    mailbox = Mailbox(comm)
    for number in range(NUM_MESSAGES):
        sent, heard = folder / f"sent-{number}", folder / f"heard-{number}"
        if comm.rank == 1:
            mailbox.send(0, Beat())
            sent.touch()
            wait_for(heard)
        else:
            wait_for(sent)  # without a call of MPI
            found = [message for _, message in mailbox.poll()]
            assert found == [Beat()], f"message {number} has come, and the first look finds {found}"
            heard.touch()
    comm.Barrier()
    mailbox.close()


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.001)


if __name__ == "__main__":
    main()
