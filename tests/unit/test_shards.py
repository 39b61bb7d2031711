"""A hand-off between instances of several ranks, all in one process: parts, heads, checksums, and who has nothing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from xpyd.kv.reshard import RankPool
from xpyd.model.shapes import LatentShape
from xpyd.model.shard import Shard
from xpyd.model.spec import ModelSpec
from xpyd.placement import Division, PlacementConfig, Role, place
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.loopback import Hub, LoopbackTransport
from xpyd.worker.errors import WorkerError
from xpyd.worker.messages import Move, Sums
from xpyd.worker.shards import Shapes, ShardReceive, ShardSend, instance_blocks
from xpyd.worker.transfer_config import TransferConfig

SPEC = ModelSpec("m", 2, 64, 8, 2, 16, 128, 256)
SCHEDULER = SchedulerConfig("chunked", 4, 32, 8, num_kv_blocks=8)
TABLES = [3, 1, 2, 7], [0, 4, 5, 6]
WIDTHS = [(2, 1), (1, 2), (4, 1), (2, 4), (4, 4)]


def test_every_rank_holds_the_whole_latent() -> None:
    latent = ModelSpec("m", 2, 64, 8, 1, 24, 128, 256, latent=LatentShape(12, 16, 8, 16))
    placement = place(PlacementConfig(1, 1, 0, 2, 1, allow_shared_node=True), ["a"] * 4)
    shapes = Shapes(latent, placement, SCHEDULER, TransferConfig("layerwise"))
    wide, (alone,) = shapes.pools(Division("tp", 2)), shapes.pools(Division())
    assert wide == [alone, alone]
    assert (len(alone.holding.heads), alone.layout.nbytes) == (
        1,
        8 * SCHEDULER.block_size * latent.kv_bytes_per_token(),
    )
    moved = [
        sum(plan.nbytes for plan in shapes.plans(rank, Move(5, 3, True, 0, *TABLES), True).values()) for rank in (1, 2)
    ]
    assert moved == [2 * SCHEDULER.block_size * latent.kv_bytes_per_token()] * 2, "of four blocks, each rank sends two"


class HandOff:
    """Every rank of both instances; source pools hold a number for each (layer, block, K or V, head), others zeros."""

    def __init__(self, widths: Any, tables: Any = TABLES, verify: Any = "always", seq: int = 0) -> None:
        config = PlacementConfig(1, 1, 0, *widths, allow_shared_node=True)
        placement = place(config, ["a"] * config.world_size)
        transfer = TransferConfig("layerwise", block_order="heads_first", max_piece_bytes=700, verify=verify)
        self.shapes = Shapes(SPEC, placement, SCHEDULER, transfer)
        self.hub = Hub()
        self.buffers: dict[int, NDArray[np.uint8]] = {}
        self.sums: dict[int, dict[int, Sums]] = {}  # by receiver and sender
        self.transports: dict[int, LoopbackTransport] = {}
        self.sends: dict[int, ShardSend] = {}
        self.receives: dict[int, ShardReceive] = {}
        for rank in range(1, config.world_size):
            source = placement.instance_of(rank).role is Role.PREFILL
            self.buffers[rank] = np.zeros(self.pool(rank).layout.nbytes, np.uint8)
            self.transports[rank] = transport = LoopbackTransport(rank, self.hub)
            transport.register(self.buffers[rank])
            peer = placement.leaders(Role.DECODE if source else Role.PREFILL)[0]
            args: Any = transport, self.desk(rank), self.buffers[rank], self.shapes
            if source:
                self.view(rank)[:] = self.expected(rank, tables[0])
                self.sends[rank] = ShardSend(*args, Move(5, peer, True, seq, *tables))
            else:
                self.receives[rank] = ShardReceive(*args, Move(5, peer, False, seq, *tables))

    def desk(self, rank: int) -> Any:
        """Its mailbox delivers checksums at once."""

        def send(receiver: int, message: Sums) -> None:
            self.sums.setdefault(receiver, {})[rank] = message

        clock = SimpleNamespace(now_ns=lambda: 1)
        return SimpleNamespace(rank=rank, mailbox=SimpleNamespace(send=send), clock=clock)

    def pool(self, rank: int) -> RankPool:
        instance = self.shapes.placement.instance_of(rank)
        return self.shapes.pools(instance.division)[instance.ranks.index(rank)]

    def view(self, rank: int) -> NDArray[np.uint8]:
        """[layer, block, K or V, head, byte] of a rank's pool."""
        pool = self.pool(rank)
        layout, heads = pool.layout, len(pool.holding.heads)
        return self.buffers[rank].reshape(layout.num_layers, layout.num_blocks, 2, heads, pool.head_bytes)

    def expected(self, rank: int, table: list[int]) -> NDArray[np.uint8]:
        """The pool of a rank that holds the request in ``table``."""
        instance = self.shapes.placement.instance_of(rank)
        found = np.zeros_like(self.view(rank))
        heads = Shard(instance.ranks.index(rank), instance.width).kv_heads(SPEC.num_kv_heads)
        for layer, place_, half, local in np.ndindex(SPEC.num_layers, len(table), 2, len(heads)):
            found[layer, table[place_], half, local] = 1 + ((layer * 8 + place_) * 2 + half) * 2 + heads[local]
        return found

    def post_and_match(self) -> None:
        """Everything that may leave leaves, and lands."""
        changed = True
        while changed:
            changed = self.hub.match()
            for send in self.sends.values():
                changed |= send.advance()

    def release(self, num_parts: int) -> None:
        for send in self.sends.values():
            send.release_parts(num_parts)
        self.post_and_match()

    def reap(self) -> None:
        for rank, receive in self.receives.items():
            receive.advance(self.sums.get(rank, {}))


@pytest.mark.parametrize("widths", WIDTHS)
def test_each_layer_leaves_when_it_is_final_and_every_rank_gets_its_heads(widths: tuple[int, int]) -> None:
    moving = HandOff(widths)
    moving.post_and_match()
    assert not any(moving.buffers[rank].any() for rank in moving.receives), "no layer is final yet"
    moving.release(1)
    for rank in moving.receives:
        assert (moving.view(rank)[0] == moving.expected(rank, TABLES[1])[0]).all()
        assert not moving.view(rank)[1].any()
    moving.reap()
    assert not any(end.done for end in (*moving.sends.values(), *moving.receives.values()))
    moving.release(2)
    moving.reap()
    assert all(end.done for end in (*moving.sends.values(), *moving.receives.values()))
    for rank, receive in moving.receives.items():
        assert (moving.view(rank) == moving.expected(rank, TABLES[1])).all()
        assert receive.verified
        assert receive.nbytes == moving.transports[rank].received_bytes
    total = sum(receive.nbytes for receive in moving.receives.values())
    assert total == len(TABLES[0]) * SCHEDULER.block_size * SPEC.kv_bytes_per_token(widths[1])


@pytest.mark.parametrize("widths", WIDTHS)
def test_a_changed_byte_is_found_and_named(widths: tuple[int, int]) -> None:
    moving = HandOff(widths)
    moving.release(SPEC.num_layers)
    rank = max(moving.receives)
    moving.view(rank)[1, TABLES[1][2], 1, 0, 3] ^= 1
    with pytest.raises(WorkerError, match=rf"rank {rank} \(decode\): KV of request 5 from rank \d differs in 1 of"):
        moving.reap()


def test_checksums_travel_once_per_pair_of_instances_unless_asked_for() -> None:
    for verify, seq, verified in (("once", 0, True), ("once", 1, False), ("off", 0, False), ("always", 7, True)):
        moving = HandOff((2, 1), verify=verify, seq=seq)
        moving.release(SPEC.num_layers)
        moving.reap()
        (receive,) = moving.receives.values()
        assert receive.done
        assert receive.verified is verified
        assert bool(moving.sums) is verified


def test_a_rank_without_a_share_of_the_blocks_is_done_at_once() -> None:
    """Four ranks hold two copies of each head; of a single block only one copy is sent."""
    moving = HandOff((4, 1), tables=([3], [0]))
    idle = [send for send in moving.sends.values() if send.part_ends[-1] == 0]
    assert len(idle) == 2
    assert all(send.part_ends == [0, 0] for send in idle)
    moving.release(SPEC.num_layers)
    moving.reap()
    assert all(send.done for send in moving.sends.values())
    (rank,) = moving.receives
    assert (moving.view(rank) == moving.expected(rank, [0])).all()


def test_every_rank_gives_as_many_bytes_whatever_its_instance() -> None:
    shapes = HandOff((1, 1)).shapes
    divisions = [Division("tp", width) for width in (1, 2, 4)] + [Division("pp", 2), Division("cp", 2)]
    assert len({pool.layout.nbytes for division in divisions for pool in shapes.pools(division)}) == 1
    assert [instance_blocks(SPEC, division, 8) for division in divisions] == [8, 16, 16, 16, 8], "copies hold no more"
    uneven = replace(SPEC, num_layers=5)
    assert instance_blocks(uneven, Division("pp", 2), 8) == 13, "the stage of 3 of 5 layers decides: 8 * 5 / 3"
