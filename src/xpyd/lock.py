"""One process at a time: a file lock that ends with its process, however that ends, and names its holder meanwhile."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

POLL_S = 0.25


class InUseError(ValueError):
    """Another live process holds the lock."""


@contextmanager
def hold(path: Path, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``. Raises InUseError, naming the holder, if another has it after ``patience_s``.

    Where the file system knows no locks it warns and goes on: better than refusing every run there.
    """
    with open(path, "a+") as file:
        _take(file, path, patience_s)
        file.truncate(0)
        who = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
        file.write(json.dumps({**who, "since": datetime.now().isoformat(timespec="seconds")}))
        file.flush()
        yield


def _take(file: IO[str], path: Path, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.seek(0)
                raise InUseError(
                    f"{path.parent} is in use by {file.read() or 'another process'}; wait until that has ended, "
                    "or end it"
                ) from None
        except OSError as error:
            print(f"warning: {path}: {error.strerror}; see that nothing else uses this folder", file=sys.stderr)
            break
        time.sleep(POLL_S)
