"""A rank that SIGUSR1 reaches while Python ends, its signal handlers gone: when nothing but modules is left of it."""

from __future__ import annotations

import os
import signal
from functools import partial

from xpyd.mpi import leave_together


class Late:
    """Sends the signal on its way out; a module's names go after Python's signal handlers."""

    def __init__(self) -> None:
        self.send = partial(os.kill, os.getpid(), signal.SIGUSR1)

    def __del__(self) -> None:
        self.send()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, lambda number, frame: None)
    late = Late()
    leave_together(0)
