"""A bound on everything: a stage that does not end in time ends the process, naming itself.

A rank that waits in MPI for one that died, or behind a firewall, never comes back to look at a clock; a thread does.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

EXIT_CODE = 1


def say_expired(stage: str, bound_s: float) -> None:
    print(f"error: {stage}: no end after {bound_s:.4g} s", file=sys.stderr, flush=True)


class Watch:
    """Watches one stage at a time. ``expired(stage, bound_s)`` has the last word before the process ends."""

    def __init__(self, expired: Callable[[str, float], None], end: Callable[[int], object] = os._exit) -> None:
        self.expired = expired
        self._end = end
        self._stage = ""
        self._bound_s = 0.0
        self._deadline: float | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def stage(self, name: str, bound_s: float) -> None:
        """``name`` begins now and must give way to the next stage, or to ``rest``, within ``bound_s`` seconds."""
        self._set(name, bound_s, time.monotonic() + bound_s)

    def rest(self) -> None:
        """Nothing is being waited for."""
        self._set("", 0.0, None)

    def _set(self, name: str, bound_s: float, deadline: float | None) -> None:
        with self._changed:
            self._stage, self._bound_s, self._deadline = name, bound_s, deadline
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while self._deadline is None or time.monotonic() < self._deadline:
                self._changed.wait(None if self._deadline is None else self._deadline - time.monotonic())
            stage, bound_s = self._stage, self._bound_s
        try:
            self.expired(stage, bound_s)
        finally:
            self._end(EXIT_CODE)
