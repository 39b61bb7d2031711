"""The heartbeat of a worker rank: it tells the client that it lives, and notices when the client no longer does."""

from __future__ import annotations

import time

from xpyd.faults import ClientLost, FaultConfig, Watch
from xpyd.placement import CLIENT_RANK
from xpyd.units import s_to_ns
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import Beat


class Outcast(RuntimeError):
    """The client has declared this rank lost (it was stopped, and goes on): the others have given it up."""


class Pulse:
    """Call ``beat`` from the loop and between layers: it sends when a beat is due, and costs next to nothing else."""

    def __init__(self, mailbox: Mailbox, rank: int, config: FaultConfig) -> None:
        self._mailbox = mailbox
        self._rank = rank
        self._interval_s = config.beat_interval_s
        self._watch = Watch([CLIENT_RANK], config, time.monotonic())
        self.due_s = 0.0  # when the next beat is to be sent

    def heard(self, source: int) -> None:
        self._watch.heard(source, time.monotonic())

    def outlasts(self, duration_ns: int) -> bool:
        """Whether the time between two beats is much longer."""
        return duration_ns < s_to_ns(self._interval_s / 4)

    def beat(self) -> None:
        """Raises ClientLost."""
        now_s = time.monotonic()
        if now_s < self.due_s:
            return
        self.due_s = now_s + self._interval_s
        self._mailbox.send(CLIENT_RANK, Beat())
        for loss in self._watch.look(now_s, self._mailbox.ended):
            raise ClientLost(f"rank {self._rank}: the client (rank {CLIENT_RANK}) is lost: {loss.reason}")
