"""KV that moves whole is offered before its prompt is computed, so that it leaves with the prompt's last layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xpyd.faults import FaultConfig
from xpyd.placement import Role
from xpyd.scheduler.sequence import Chunk, Sequence, StepPlan
from xpyd.worker.messages import Accept, Message, Offer, Submit
from xpyd.worker.output import Output
from xpyd.worker.serving import ServingWorker
from xpyd.worker.source import SourceEnd

PEER = 3
ACCEPT = Accept(7, [4], staged=False)


class Post:
    """Every look finds what was put into ``come``."""

    def __init__(self) -> None:
        self.ended: set[int] = set()
        self.sent: list[tuple[int, Message]] = []
        self.come: list[tuple[int, Message]] = []

    def send(self, rank: int, message: Message) -> None:
        self.sent.append((rank, message))

    def poll(self) -> list[tuple[int, Message]]:
        come, self.come = self.come, []
        return come

    @property
    def num_offers(self) -> int:
        return sum(isinstance(message, Offer) for _, message in self.sent)


class Flow:
    """What may leave by now, and whether it was seen to."""

    begin_ns, done = None, False

    def __init__(self) -> None:
        self.released = 0
        self.left = 0

    def release(self, count: int) -> None:
        self.released = count

    def advance(self) -> bool:
        self.left = self.released
        return False


class Bench:
    """A prefill rank between its layers, of a model with ``num_layers``; one block of KV is one piece a layer."""

    def __init__(self, mode: str, num_layers: int) -> None:
        self.post, self.flow, self.num_layers = Post(), Flow(), num_layers
        scheduler = SimpleNamespace(num_quarantined=0, num_waiting=0, num_running=0, add=lambda sequence: None)
        cache = SimpleNamespace(layout=SimpleNamespace(num_layers=num_layers), block_size=16)
        engine: Any = SimpleNamespace(scheduler=scheduler)
        faults = FaultConfig()
        desk: Any = SimpleNamespace(
            mailbox=self.post, rank=1, faults=faults, role=Role.PREFILL, step_columns=(0, 1, "")
        )
        transport = SimpleNamespace(progress=lambda: False)
        plan = SimpleNamespace(part_ends=list(range(1, num_layers + 1)))
        config = SimpleNamespace(mode=mode, direction="pull")
        mover: Any = SimpleNamespace(desk=desk, transport=transport, config=config, cache=cache, slots=None)
        mover.blocks_per_part, mover.one_sided_pull, mover.one_sided_push, mover.cancelled = None, False, False, {}
        mover.plan, mover.check_time = lambda *_: plan, lambda *_: None
        self.end = SourceEnd(engine, mover)
        vars(self.end)["_flow"] = lambda *_: self.flow
        self.worker = ServingWorker(engine, desk, 1.0, mover, source=self.end)
        self.sequence = Sequence(7, [1] * 16, 1, block_table=[2])
        self.worker.handle(0, Submit(7, b"", 5, 0, PEER))

    def step(self, *chunks: Chunk) -> None:
        self.worker.before_run(StepPlan(decodes=[], prefills=list(chunks), preempted=[]))

    def layers(self, *numbers: int) -> None:
        for number in numbers:
            self.worker.on_layer(number)

    def ends(self) -> None:
        self.end.computed([Output(self.sequence, 0, None)])  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_layers", "at"), [(6, 4), (2, 0), (1, 0)])
def test_the_answer_is_here_when_the_prompt_is_computed(num_layers: int, at: int) -> None:
    bench = Bench("whole", num_layers)
    bench.step(Chunk(bench.sequence, 0, 16))
    bench.layers(*range(at))
    assert bench.post.num_offers == 0
    bench.layers(at)
    assert bench.post.num_offers == 1
    bench.post.come = [(PEER, ACCEPT)]
    bench.layers(*range(at + 1, num_layers))
    assert not bench.post.come or num_layers == at + 1  # looked for behind each layer
    bench.worker.receive()
    assert (bench.flow.released, bench.flow.left) == (0, 0)  # the last layers' KV is not final
    bench.ends()
    assert bench.flow.left == num_layers
    assert bench.post.num_offers == 1


def test_a_prompt_that_another_step_ends_is_not_offered() -> None:
    bench = Bench("whole", 6)
    bench.step(Chunk(bench.sequence, 0, 8))
    bench.layers(*range(6))
    assert bench.post.num_offers == 0


def test_layers_are_offered_before_the_first() -> None:
    bench = Bench("layerwise", 6)
    bench.step(Chunk(bench.sequence, 0, 16))
    assert bench.post.num_offers == 1
    bench.layers(*range(6))
    assert bench.post.num_offers == 1
