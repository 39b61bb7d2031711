"""What both ends of the hand-off share: a transport, its settings, plans, staging slots, the bound on a transfer."""

from __future__ import annotations

import time
from collections.abc import Sequence

from xpyd.kv.coalesce import PieceCosts
from xpyd.kv.plan import Plan, plan_request
from xpyd.kv.staging import Slots, StagedPlan, plan_staged
from xpyd.transport.base import Transport
from xpyd.units import NS_PER_S
from xpyd.worker.base import Desk, Worker, WorkerError
from xpyd.worker.engine import Engine
from xpyd.worker.handoff import TransferConfig


class MovingWorker(Worker):
    """A worker whose KV leaves or arrives over a transport. ``costs`` are needed for ``transfer.staging=auto`` only."""

    def __init__(
        self,
        engine: Engine,
        desk: Desk,
        drain_timeout_s: float,
        transport: Transport,
        config: TransferConfig,
        costs: PieceCosts | None = None,
    ) -> None:
        super().__init__(engine, desk, drain_timeout_s)
        self._transport = transport
        self._config = config
        self._costs = costs
        self._cache = engine.runner.cache
        self._blocks_per_part = config.blocks_per_part(engine.scheduler.config)
        # A one-sided transport is used as one, also where it could send as well.
        self._one_sided_pull = config.direction == "pull" and transport.capabilities.one_sided_read
        self._one_sided_push = config.direction == "push" and transport.capabilities.one_sided_write
        pool_bytes = self._cache.layout.nbytes
        self._slots = Slots(pool_bytes, config.max_piece_bytes, self._cache.buffer.nbytes - pool_bytes)

    def plan(self, source: Sequence[int], destination: Sequence[int]) -> Plan:
        layout, limit = self._cache.layout, self._config.max_piece_bytes
        return plan_request(layout, source, destination, limit, self._blocks_per_part)

    def plan_staged(self, source: Sequence[int], destination: Sequence[int]) -> StagedPlan:
        layout, limit = self._cache.layout, self._config.max_piece_bytes
        return plan_staged(layout, source, destination, limit, self._blocks_per_part)

    def check_time(self, since_ns: int, what: str) -> None:
        """Raises WorkerError where ``what`` could have ended since ``since_ns`` (perf_counter_ns), beyond the limit."""
        waited_s = (time.perf_counter_ns() - since_ns) / NS_PER_S
        if waited_s > self._config.timeout_s:
            raise WorkerError(
                f"rank {self.desk.rank} ({self.role}): {what} is not done after {waited_s:.1f} s "
                f"(transfer.timeout_s={self._config.timeout_s})"
            )
