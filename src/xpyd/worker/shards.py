"""One rank's part of a hand-off between instances: its own layers and heads, to or from each rank that shares them.

Leaders agree on a hand-off as single ranks do (offer, accept, first token, release). A leader passes it on to its
followers as a ``Move``; every rank then plans its own pairs from the same two block tables, and tells its leader when
it is done (``Moved``). KV goes straight from rank to rank. Two-sided pull only.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout, Span
from xpyd.kv.plan import Plan
from xpyd.kv.reshard import Holding, RankPool, holdings, plan_pull, pulls
from xpyd.model.spec import ModelSpec
from xpyd.placement import Division, Placement
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.base import Transport
from xpyd.transport.flow import RecvFlow, SendFlow
from xpyd.worker.desk import Desk
from xpyd.worker.errors import WorkerError
from xpyd.worker.messages import Move, Sums
from xpyd.worker.transfer_config import TransferConfig


def instance_blocks(spec: ModelSpec, division: Division, num_kv_blocks: int) -> int:
    """KV blocks of an instance whose ranks each give the bytes of ``num_kv_blocks`` blocks of the whole model.

    A stage with more layers than others has room for fewer blocks, and decides.
    """
    held = max(len(each.layers) * len(each.heads) for each in _holdings(spec, division))
    return num_kv_blocks * spec.num_layers * spec.num_kv_heads // held


def _holdings(spec: ModelSpec, division: Division) -> list[Holding]:
    return holdings(division, spec.num_layers, spec.num_kv_heads)


@dataclass(frozen=True)
class Shapes:
    """What every rank knows of every pool: enough to plan both ends of a hand-off."""

    spec: ModelSpec
    placement: Placement
    scheduler: SchedulerConfig  # as configured; an instance of several ranks has more blocks, see instance_blocks
    transfer: TransferConfig

    def pools(self, division: Division) -> list[RankPool]:
        """The pool of every rank of an instance."""
        spec, size, blocks_first = self.spec, self.scheduler.block_size, self.transfer.order.blocks_first
        num_blocks = instance_blocks(spec, division, self.scheduler.num_kv_blocks)
        head_bytes = size * spec.kv_head_dim * spec.dtype_bytes
        found = []
        for held in _holdings(spec, division):
            block_bytes = spec.kv_planes * len(held.heads) * head_bytes
            layout = PoolLayout(len(held.layers), num_blocks, block_bytes, blocks_first)
            found.append(RankPool(layout, head_bytes, spec.kv_planes, held))
        return found

    def payload_bytes(self, leader: int, num_blocks: int) -> int:
        """What all ranks of the instance that ``leader`` leads receive: a copy of a head for each that holds it."""
        layouts = [pool.layout for pool in self.pools(self.placement.instance_of(leader).division)]
        return num_blocks * sum(layout.num_layers * layout.block_bytes for layout in layouts)

    def plans(self, rank: int, move: Move, sends: bool) -> dict[int, Plan]:
        """This rank's pairs in a hand-off, by the rank at the other end."""
        mine, theirs = self.placement.instance_of(rank), self.placement.instance_of(move.peer)
        source, destination = (mine, theirs) if sends else (theirs, mine)
        sources, destinations = self.pools(source.division), self.pools(destination.division)
        limits = self.transfer.max_piece_bytes, self.transfer.blocks_per_part(self.scheduler)
        tables = move.source_table, move.destination_table
        num_layers, num_kv_heads = self.spec.num_layers, self.spec.num_kv_heads
        found = {}
        for pull in pulls(source.division, destination.division, num_layers, num_kv_heads):
            pair = source.ranks[pull.source], destination.ranks[pull.destination]
            if pair[0 if sends else 1] == rank:
                ends = sources[pull.source], destinations[pull.destination]
                found[pair[1 if sends else 0]] = plan_pull(pull, *ends, num_layers, tables, *limits)
        return found

    def num_parts(self, num_blocks: int) -> int:
        """Parts of a hand-off of so many blocks."""
        blocks_per_part = self.transfer.blocks_per_part(self.scheduler)
        return self.spec.num_layers if blocks_per_part is None else -(-num_blocks // blocks_per_part)

    def verifies(self, move: Move) -> bool:
        """Whether checksums travel; both ends answer alike. ``once``: the first hand-off of two instances a block."""
        return self.transfer.verify == "always" or (self.transfer.verify == "once" and move.transfer_seq == 0)


class ShardSend:
    """Sends what this rank holds of one request to every rank that takes it; parts as in ``kv.plan``."""

    def __init__(self, transport: Transport, desk: Desk, buffer: NDArray[np.uint8], shapes: Shapes, move: Move) -> None:
        self.plans = shapes.plans(desk.rank, move, sends=True)
        self.part_ends = [  # pieces of parts 0 to p, to all ranks together; this rank may have none to send
            sum(plan.part_ends[part] for plan in self.plans.values())
            for part in range(shapes.num_parts(len(move.source_table)))
        ]
        window = shapes.transfer.pieces_in_flight
        self._flows = {
            peer: SendFlow(transport, peer, plan.source, move.transfer_seq, window, plan.part_ends)
            for peer, plan in self.plans.items()
        }
        self._desk, self._buffer, self._move = desk, buffer, move
        self._unsummed = set(self.plans) if shapes.verifies(move) else set()

    @property
    def begin_ns(self) -> int | None:
        """This rank's perf_counter_ns at its first post."""
        return min((flow.begin_ns for flow in self._flows.values() if flow.begin_ns is not None), default=None)

    @property
    def done(self) -> bool:
        return not self._unsummed and all(flow.done for flow in self._flows.values())

    def release_parts(self, num_parts: int) -> None:
        """The KV of the first ``num_parts`` parts is final here."""
        for peer, flow in self._flows.items():
            if num_parts:
                flow.release(self.plans[peer].part_ends[num_parts - 1])

    def advance(self) -> bool:
        """Post what may leave, reap what has left; what has left whole is summed where it is to be verified."""
        changed = False
        for peer, flow in self._flows.items():
            changed |= flow.advance()
            if flow.done and peer in self._unsummed:
                self._unsummed.remove(peer)
                sums = _sums(self._buffer, self.plans[peer].source)
                self._desk.mailbox.send(peer, Sums(self._move.request_id, sums))
        return changed


class ShardReceive:
    """Receives this rank's part of one request from every rank that gives some of it, and verifies it."""

    def __init__(self, transport: Transport, desk: Desk, buffer: NDArray[np.uint8], shapes: Shapes, move: Move) -> None:
        self.plans = shapes.plans(desk.rank, move, sends=False)
        self.nbytes = sum(plan.nbytes for plan in self.plans.values())
        self._flows = {
            peer: RecvFlow(transport, peer, plan.destination, move.transfer_seq, plan.part_ends)
            for peer, plan in self.plans.items()
        }
        self._desk, self._buffer, self._move = desk, buffer, move
        self._unsummed = set(self.plans) if shapes.verifies(move) else set()
        self.verified = bool(self._unsummed)
        self.landed_ns = 0  # the client's clock

    @property
    def done(self) -> bool:
        return bool(self.landed_ns) and not self._unsummed

    def advance(self, sums: dict[int, Sums]) -> bool:
        """Reap what has landed, and check it where ``sums`` by rank are here; True when something is complete.

        Raises TransportError, and WorkerError where bytes differ.
        """
        if not self.landed_ns:
            for flow in self._flows.values():
                flow.advance()
            if not all(flow.done for flow in self._flows.values()):
                return False
            self.landed_ns = self._desk.clock.now_ns()
        for peer in self._unsummed & set(sums):
            self._check(peer, np.frombuffer(sums.pop(peer).checksums, np.uint32))
            self._unsummed.remove(peer)
        return self.done

    def _check(self, peer: int, expected: NDArray[np.uint32]) -> None:
        found = np.frombuffer(_sums(self._buffer, self.plans[peer].destination), np.uint32)
        wrong = np.flatnonzero(expected != found)
        if len(wrong):
            raise WorkerError(
                f"rank {self._desk.rank} (decode): KV of request {self._move.request_id} from rank {peer} differs in "
                f"{len(wrong)} of {len(expected)} pieces, first {wrong[:8].tolist()}"
            )


def _sums(buffer: NDArray[np.uint8], spans: Iterable[Span]) -> bytes:
    """CRC-32 of every piece, in the order of the plan."""
    return np.array([zlib.crc32(buffer[s.offset : s.offset + s.nbytes].data) for s in spans], np.uint32).tobytes()
