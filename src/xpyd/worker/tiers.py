"""The tiers of a rank's KV for a whole session: memory, measured costs, and what each block's engine gets of them."""

from __future__ import annotations

from collections.abc import Iterator

from xpyd.economics.cost import ComputeModel, LinkModel, fit_compute
from xpyd.kv.arenas import Arenas
from xpyd.kv.tiers import FetchCosts
from xpyd.model.runner import ModelRunner
from xpyd.model.spec import ModelSpec
from xpyd.placement import Placement
from xpyd.records import TierRow
from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker.engine import Engine
from xpyd.worker.fetch_costs import host_link, time_chunks
from xpyd.worker.mover import Mover
from xpyd.worker.pool import OUTBOX_BLOCKS, Lent, PoolEnd
from xpyd.worker.remote_link import Shelf, sharers
from xpyd.worker.transfer_config import TransferConfig


class Tiers:
    """``config`` says what each tier holds at most; a block may leave some of them out."""

    def __init__(self, config: SchedulerConfig, transfer: TransferConfig, spec: ModelSpec) -> None:
        self._config = config
        self._transfer = transfer
        self._block_bytes = spec.num_layers * spec.block_bytes(config.block_size)
        self.registered_bytes = Lent.nbytes(config.num_remote_blocks, self._block_bytes)
        self._compute: dict[ModelRunner, ComputeModel] = {}
        self._host: dict[ModelRunner, LinkModel] = {}
        self.remote: LinkModel | None = None  # as measured, where the remote pool has to know it

    def shelf(self, placement: Placement, runner: ModelRunner) -> Shelf:
        """Where this rank keeps blocks for all that share the remote pool."""
        return Shelf(runner.cache.layout, self._lent(sharers(placement), runner).shelf_begin)

    def prepare(self, runner: ModelRunner, scheduler: SchedulerConfig) -> None:
        """Measure, before any clock runs, what this block's choices need and no earlier one did."""
        if scheduler.fetch == "always":
            return
        if (scheduler.num_host_blocks or scheduler.num_remote_blocks) and runner not in self._compute:
            self._compute[runner] = fit_compute(list(time_chunks(runner))).model
        if scheduler.num_host_blocks and runner not in self._host:
            self._host[runner] = host_link(runner, scheduler.num_host_blocks)

    def fetch(self, runner: ModelRunner, scheduler: SchedulerConfig) -> FetchCosts | None:
        """What decides on blocks of the host tier; None: they always come back."""
        if not scheduler.num_host_blocks or scheduler.fetch == "always":
            return None
        return FetchCosts(self._compute[runner], self._host[runner], scheduler.block_size, self._block_bytes)

    def arenas(self, runner: ModelRunner, scheduler: SchedulerConfig) -> Arenas:
        """The memory of a block's tiers."""
        if not scheduler.num_remote_blocks:
            return Arenas(runner.cache, scheduler.num_host_blocks)
        shelf = self._config.num_remote_blocks
        return Arenas(runner.cache, scheduler.num_host_blocks, self._behind(runner), OUTBOX_BLOCKS, shelf)

    def pool_end(self, engine: Engine, mover: Mover, placement: Placement) -> PoolEnd | None:
        """This rank's end of the remote pool, where the block has one and this rank computes prompts."""
        ranks = sharers(placement)
        scheduler = engine.scheduler.config
        if not scheduler.num_remote_blocks or mover.desk.rank not in ranks:
            return None
        fetch = None
        if scheduler.fetch == "cheaper":
            assert self.remote is not None, "the remote pool's link was not measured"
            fetch = FetchCosts(self._compute[engine.runner], self.remote, scheduler.block_size, self._block_bytes)
        return PoolEnd(engine, mover, self._lent(ranks, engine.runner), fetch)

    def _behind(self, runner: ModelRunner) -> int:
        """Where the registered memory of the tiers begins: behind the pool, and what hand-offs stage in."""
        return runner.cache.layout.nbytes + self._transfer.registered_staging_bytes

    def _lent(self, ranks: tuple[int, ...], runner: ModelRunner) -> Lent:
        return Lent(ranks, self._config.num_remote_blocks, self._behind(runner), self._block_bytes)


def tier_rows(block: int, rank: int, engine: Engine, pool: PoolEnd | None) -> Iterator[TierRow]:
    """What a rank's cache moved in a block."""
    moved = engine.arenas.moved_bytes + (pool.moved_bytes if pool is not None else type(engine.arenas.moved_bytes)())
    for way, num_bytes in sorted(moved.items()):
        yield TierRow(block, rank, way, num_bytes)
