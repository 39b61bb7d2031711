"""Two ends of a remote pool in one process: what is evicted here is fetched from there, byte for byte, or let go."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.unit.test_model_runner import MICRO
from xpyd.clock import Clock
from xpyd.kv.entries import Fetch, block_keys
from xpyd.kv.remote import home_of
from xpyd.model.runner import ModelRunner
from xpyd.placement import Role
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.registry import build_scheduler
from xpyd.scheduler.sequence import Sequence
from xpyd.transport.loopback import Hub, LoopbackTransport
from xpyd.worker.desk import Desk
from xpyd.worker.engine import Engine
from xpyd.worker.messages import Cancelled, Message
from xpyd.worker.mover import Mover
from xpyd.worker.pool import PoolEnd
from xpyd.worker.tiers import Tiers
from xpyd.worker.transfer_config import TransferConfig

CONFIG = SchedulerConfig("chunked", 4, 64, 4, 12, True, num_remote_blocks=32, fetch="always")
RANKS = (1, 2)


@dataclass
class Post:
    """Messages between ranks that have not been taken."""

    waiting: deque[tuple[int, int, Message]] = field(default_factory=deque)

    def of(self, rank: int) -> Any:
        return Box(self, rank)


@dataclass
class Box:
    post: Post
    rank: int

    def send(self, rank: int, message: Message) -> None:
        self.post.waiting.append((self.rank, rank, message))

    def send_all(self, ranks: list[int], message: Message) -> None:
        for rank in ranks:
            self.send(rank, message)


class Two:
    """Two workers' engines and pool ends; ``fetch`` as in PoolEnd."""

    def __init__(self, fetch: Fetch | None = None) -> None:
        self.post, hub, transfer = Post(), Hub(), TransferConfig()
        tiers = Tiers(CONFIG, transfer, MICRO)
        self.ends: dict[int, PoolEnd] = {}
        self.confirmed: list[Cancelled] = []
        for rank in RANKS:
            runner = ModelRunner(MICRO, CONFIG.num_kv_blocks, 4, staging_bytes=tiers.registered_bytes)
            engine = Engine(runner, build_scheduler(CONFIG, Role.COLOCATED), arenas=tiers.arenas(runner, CONFIG))
            transport = LoopbackTransport(rank, hub)
            transport.register(runner.cache.buffer)
            desk = Desk(rank, 0, self.post.of(rank), None, Clock())  # type: ignore[arg-type]
            lent = tiers._lent(RANKS, runner)
            self.ends[rank] = PoolEnd(engine, Mover(engine, desk, transport, transfer), lent, fetch)

    def pump(self) -> None:
        """Let messages and bytes move until nothing does."""
        idle = 0
        while idle < 3:
            idle += 1
            while self.post.waiting:
                source, rank, message = self.post.waiting.popleft()
                idle = 0
                if rank == 0:
                    assert isinstance(message, Cancelled)
                    self.confirmed.append(message)
                else:
                    assert self.ends[rank].handle(source, message)
            if any([end.move() for end in self.ends.values()]):  # noqa: C419 - both, whatever the first did
                idle = 0

    def run(self, rank: int, request_id: int, prompt: list[int]) -> Sequence:
        """One request, from its arrival to its only token."""
        engine = self.ends[rank].engine
        sequence = Sequence(request_id, prompt, 1)
        queued: list[bool] = []
        if not self.ends[rank].want(sequence, lambda: queued.append(True)):
            queued.append(True)
        self.pump()
        assert queued == [True]
        engine.scheduler.add(sequence)
        while not sequence.outputs:
            plan = engine.scheduler.schedule()
            for ended in engine.commit(plan, engine.run(plan)):
                kv = [engine.runner.cache.pool[:, block].clone() for block in ended.block_table]
                self.kv = torch.stack(kv)
                engine.scheduler.release(ended)
            self.pump()
        return sequence


def prompt_of(home: int) -> list[int]:
    """26 tokens whose chain lives on this rank."""
    for seed in range(99):
        prompt = [(seed + 7 * i) % 97 for i in range(26)]
        if home_of(block_keys(prompt, 4, [])[0], RANKS) == home:
            return prompt
    raise AssertionError


def evict(two: Two, rank: int) -> None:
    two.run(rank, 90, [5] * 48)


def test_what_one_rank_evicts_any_rank_fetches() -> None:
    two = Two()
    prompt = prompt_of(2)
    first = two.run(1, 0, prompt)
    expected = two.kv
    evict(two, 1)
    assert two.ends[2].moved_bytes["put"] > 0
    again = two.run(1, 1, prompt)
    assert (again.num_remote, again.num_cached, again.outputs) == (6, 24, first.outputs)
    assert torch.equal(two.kv[:6], expected[:6])
    at_home = two.run(2, 2, prompt)
    assert (at_home.num_remote, at_home.outputs) == (6, first.outputs)
    assert two.ends[2].moved_bytes["here"] > 0
    assert two.ends[2]._shelf.num_free == CONFIG.num_remote_blocks, "what was given is held by nobody"
    assert two.ends[1].ledger_bytes == two.ends[1].moved_bytes["fetched"] == 6 * expected[0].numel() * 4


def test_a_cancelled_fetch_leaves_nothing_behind() -> None:
    two = Two()
    prompt = prompt_of(2)
    two.run(1, 0, prompt)
    evict(two, 1)
    end, free = two.ends[1], two.ends[1].engine.scheduler.num_free_blocks
    assert end.want(Sequence(1, prompt, 1), lambda: 1 / 0)
    assert end.stages() == {1: "fetches KV of its beginning from rank 2"}
    assert end.cancel(1, 3)
    two.pump()
    assert [(m.request_id, m.attempt) for m in two.confirmed] == [(1, 3)]
    assert end.engine.scheduler.num_free_blocks == free
    assert two.ends[2]._shelf.num_free == CONFIG.num_remote_blocks


def test_what_is_cheaper_computed_is_neither_put_nor_sought() -> None:
    two = Two(lambda start, num_blocks: False)
    first = two.run(1, 0, prompt_of(2))
    evict(two, 1)
    again = two.run(1, 1, prompt_of(2))
    assert (again.num_cached, again.outputs) == (0, first.outputs)
    assert not two.ends[2].moved_bytes


def test_a_block_ends_when_both_have_closed() -> None:
    two = Two()
    two.run(1, 0, prompt_of(2))
    two.ends[1].close()
    two.pump()
    assert not two.ends[1].quiet
    two.ends[2].close()
    two.pump()
    assert two.ends[1].quiet
    assert two.ends[2].quiet
