"""What both ends of the hand-off share on a rank: transport, settings, plans, staging slots, bounds, lost peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.checksum import checksums
from xpyd.kv.coalesce import PieceCosts
from xpyd.kv.codec.cells import CellCodec
from xpyd.kv.plan import Plan, plan_request
from xpyd.kv.staging import Slots, StagedPlan, plan_staged
from xpyd.placement import CLIENT_RANK
from xpyd.transport.base import Transport, TransportError
from xpyd.units import NS_PER_S
from xpyd.worker.desk import Desk
from xpyd.worker.engine import Engine
from xpyd.worker.errors import WorkerError
from xpyd.worker.messages import PeerLost
from xpyd.worker.packing import CodedPacker, CopyPacker, Packer
from xpyd.worker.transfer_config import TransferConfig

PUSH_NS = 5_000_000  # between two layers at most: a prompt waits for it


def while_moving(move: Callable[[], bool]) -> None:
    """Call ``move`` until nothing moves: what the wire takes now need not wait for the next layer."""
    end_ns = time.perf_counter_ns() + PUSH_NS
    while move() and time.perf_counter_ns() < end_ns:
        pass


class Mover:
    """One rank's transport, and the pool that it moves KV out of and into; made once per block.

    ``costs`` are needed for ``transfer.staging=auto`` only.
    """

    def __init__(
        self,
        engine: Engine,
        desk: Desk,
        transport: Transport,
        config: TransferConfig,
        costs: PieceCosts | None = None,
    ) -> None:
        self.desk = desk
        self.transport = transport
        self.config = config
        self.costs = costs
        self.cache = engine.runner.cache
        self.blocks_per_part = config.blocks_per_part(engine.scheduler.config)
        # A one-sided transport is used as one, also where it could send as well.
        self.one_sided_pull = config.direction == "pull" and transport.capabilities.one_sided_read
        self.one_sided_push = config.direction == "push" and transport.capabilities.one_sided_write
        self.cancelled: dict[int, int] = {}  # the highest attempt of each request that was cancelled here
        self.lost: dict[int, bool] = {}  # lost peers: whether the transport promised that it ends their tickets
        pool_bytes = self.cache.layout.nbytes
        coded = config.codec.name != "none"
        self._codec = CellCodec(config.codec, self.cache.cells) if coded else None
        self.slots = Slots(pool_bytes, config.max_piece_bytes, config.registered_staging_bytes)
        self._accused: set[int] = set()

    def drop(self, rank: int) -> None:
        """A rank is lost: nothing moves to or from it any more."""
        self.lost[rank] = self.transport.drop(rank)

    def accuse(self, peer: int, error: TransportError) -> None:
        """Tell the client once that ``peer`` cannot be reached; its hand-offs rest until the client has decided."""
        if peer not in self._accused:
            self._accused.add(peer)
            reason = f"{self.desk.who} cannot reach it: {error}"
            self.desk.mailbox.send(CLIENT_RANK, PeerLost(peer, reason))

    def plan(self, source: Sequence[int], destination: Sequence[int], num_here: int = 0) -> Plan:
        layout, limit = self.cache.layout, self.config.max_piece_bytes
        return plan_request(layout, source, destination, limit, self.blocks_per_part, num_here)

    def plan_staged(self, source: Sequence[int], destination: Sequence[int], num_here: int = 0) -> StagedPlan:
        layout, limit = self.cache.layout, self.config.max_piece_bytes
        return plan_staged(layout, source, destination, limit, self.blocks_per_part, self.cell_bytes, num_here)

    @property
    def cell_bytes(self) -> int:
        """What one block of one layer takes on the wire."""
        return self.cache.layout.block_bytes if self._codec is None else self._codec.cell_bytes

    def wire_bytes(self, num_blocks: int) -> int:
        """What so many blocks of all layers take on the wire."""
        return num_blocks * self.cache.layout.num_layers * self.cell_bytes

    def packer(self, table: Sequence[int] = (), num_tokens: int = 0) -> Packer:
        """How staged cells are packed; the sender says which blocks they are of, and how many tokens these hold."""
        if self._codec is None:
            return CopyPacker(self.cache.buffer, self.cache.layout.block_bytes)
        if not table:
            return CodedPacker(self.cache.buffer, self._codec)
        return CodedPacker(self.cache.buffer, self._codec, *self._last(table, num_tokens))

    def landed_checksums(self, table: Sequence[int], num_tokens: int) -> NDArray[np.uint32]:
        """The checksums that the other end will find, [num_layers, len(table)]: of the blocks, or of their decoding."""
        layout = self.cache.layout
        if self._codec is None:
            return checksums(self.cache.buffer, layout, table)
        found = self._codec.landed_checksums(self._cells(table), *self._last(table, num_tokens))
        return found.reshape(layout.num_layers, len(table))

    def _cells(self, table: Sequence[int]) -> NDArray[np.int64]:
        """All layers of these blocks, layer by layer."""
        layout = self.cache.layout
        return np.array([layout.offset(layer, block) for layer in range(layout.num_layers) for block in table])

    def _last(self, table: Sequence[int], num_tokens: int) -> tuple[frozenset[int], int]:
        """The cells of the last block, and how many of the tokens lie in it."""
        return frozenset(self._cells(table[-1:]).tolist()), num_tokens - (len(table) - 1) * self.cache.block_size

    def check_time(self, since_ns: int, what: str) -> None:
        """Raises WorkerError where ``what`` could have ended since ``since_ns`` (perf_counter_ns), beyond the limit."""
        waited_s = (time.perf_counter_ns() - since_ns) / NS_PER_S
        if waited_s > self.config.timeout_s:
            raise WorkerError(
                f"{self.desk.who}: {what} is not done after {waited_s:.1f} s "
                f"(transfer.timeout_s={self.config.timeout_s})"
            )
