"""What both ends of the hand-off share: a transport, its settings, and the bound on every transfer."""

from __future__ import annotations

import time

from xpyd.transport.base import Transport
from xpyd.units import NS_PER_S
from xpyd.worker.base import Desk, Worker, WorkerError
from xpyd.worker.engine import Engine
from xpyd.worker.handoff import TransferConfig


class MovingWorker(Worker):
    """A worker whose KV leaves or arrives over a transport."""

    def __init__(
        self, engine: Engine, desk: Desk, drain_timeout_s: float, transport: Transport, config: TransferConfig
    ) -> None:
        super().__init__(engine, desk, drain_timeout_s)
        self._transport = transport
        self._config = config
        self._cache = engine.runner.cache

    def check_time(self, accepted_ns: int, what: str) -> None:
        """Raises WorkerError for a transfer accepted (this rank's perf_counter_ns) longer ago than the limit."""
        waited_s = (time.perf_counter_ns() - accepted_ns) / NS_PER_S
        if waited_s > self._config.timeout_s:
            raise WorkerError(
                f"rank {self.desk.rank} ({self.role}): {what} is not done after {waited_s:.1f} s "
                f"(transfer.timeout_s={self._config.timeout_s})"
            )
