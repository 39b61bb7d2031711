"""The one place where MPI starts. Importing this module initialises MPI; front ends must not.

UCX's libraries are loaded first: Open MPI's wheel brings an older UCX of the same soname, whichever is loaded first
serves both, and only the newer one can (ucxx fails with an undefined symbol otherwise).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn


def preload_ucx() -> None:
    """Load the UCX of the wheel, where it is installed; a site's own UCX is found by the loader itself."""
    os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")  # the wheel's loader sets variables that UCX warns about
    # UCX's default is a connect() that blocks in the kernel: behind a firewall for two minutes, past every bound.
    os.environ.setdefault("UCX_TCP_CONN_NB", "y")
    try:
        import libucx
    except ImportError:
        return
    libucx.load_library()


preload_ucx()

from mpi4py import MPI  # noqa: E402

PROCESS_FAILED = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)  # raised by an MPI with ULFM only


def survives_ends() -> bool:
    """Whether this job goes on when a rank ends: Open MPI's launcher says so to ranks started ``--with-ft ulfm``."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112 - its name is Open MPI's


@cache
def address_of(function: str) -> int | None:
    """Where a function of MPI is, for those who call it from C; None where it cannot be found by mpi4py's file."""
    found = getattr(ctypes.CDLL(MPI.__file__), function, None)
    return ctypes.cast(found, ctypes.c_void_p).value if found is not None else None


def meet() -> None:
    """Wait until all ranks are in one world, and let the launch script know. Collective."""
    MPI.COMM_WORLD.Barrier()
    if MPI.COMM_WORLD.rank == 0:
        _tell_launch_script("met")


def leave_together(code: int) -> NoReturn:
    """End this process when all ranks have come to the same end. Collective.

    ``python -m mpi4py`` makes an MPI_Abort of every exit code that is not 0, and the launcher (prterun 5.0.11) can lock
    up when several ranks abort, or end with such a code, at once: they meet in MPI_Finalize, and rank 0 alone has it.

    SIGUSR1 (a time limit is near) means nothing any more. Python puts back what it does by default, which is to end the
    process, before the process ends; a signal that is ignored stays so.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    rank = MPI.COMM_WORLD.rank
    if code:
        MPI.Finalize()
    if rank == 0:
        _tell_launch_script(f"ended {code}")
    sys.exit(code if rank == 0 else 0)


def _tell_launch_script(state: str) -> None:
    """Replace the one line of the file XPYD_WORLD, which launch/common.sh watches; nothing where no script does."""
    if name := os.environ.get("XPYD_WORLD"):
        new = Path(f"{name}.new")
        new.write_text(f"{state}\n")
        new.replace(name)


def leave_job() -> NoReturn:
    """End this process at once, in a job that survives it.

    By a signal, not with an exit code: the launcher (prterun 5.0.11) counts a rank that ends with an error twice, and
    ends all the others when the count reaches the number of ranks.
    """
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("a process outlived SIGKILL")


__all__ = ["MPI", "PROCESS_FAILED", "address_of", "leave_job", "leave_together", "meet", "survives_ends"]
