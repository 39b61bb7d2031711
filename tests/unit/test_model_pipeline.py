"""A pipeline of stages is the whole model: tokens and KV are one rank's, whatever the micro-batches.

Stages are threads here, and what they send goes through queues; tests/mpi has the real ones.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_model_parallel import MICRO, PROMPTS, TABLES, VARIANTS
from xpyd.economics.pipeline import bubble_share
from xpyd.model.pipeline import PipelineRunner, micro_batches
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.sampled import Sampled
from xpyd.model.shard import Member
from xpyd.model.weights import load_weights
from xpyd.placement import Division

DEEP = replace(MICRO, num_layers=5)  # stages of 2 and 3 layers, or of 1, 1, 1 and 2


class ThreadStages:
    """One stage; ``links[i]`` carries what stage i - 1 sends to stage i, ``links[0]`` what the last one drew."""

    def __init__(self, links: list[queue.Queue[Any]], rank: int) -> None:
        self.member = Member(rank, Division("pp", len(links)))
        self._links = links
        self.received: list[tuple[int, ...]] = []

    def receive(self, hidden: torch.Tensor, idle: Callable[[], None]) -> None:
        hidden.copy_(self._links[self.member.rank].get(timeout=30))
        self.received.append(tuple(hidden.shape))

    def send(self, hidden: torch.Tensor) -> None:
        self._links[self.member.rank + 1].put(hidden.clone())

    def progress(self) -> None:
        pass

    def deliver(self, drawn: Any, idle: Callable[[], None]) -> Any:
        if self.member.rank == len(self._links) - 1:
            self._links[0].put(drawn)
        return self._links[0].get(timeout=30) if self.member.rank == 0 else drawn


def on_stages(
    width: int, count: int | None, spec: Any, work: Callable[[ModelRunner], Any]
) -> list[tuple[PipelineRunner, Any]]:
    """``work(runner)`` on every stage at once: each one's runner and what it got."""
    links: list[queue.Queue[Any]] = [queue.Queue() for _ in range(width)]

    def stage(rank: int) -> tuple[PipelineRunner, Any]:
        runner = PipelineRunner(ThreadStages(links, rank), count, spec, 64, 4)
        return runner, work(runner)

    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(stage, range(width)))


def steps(runner: ModelRunner) -> list[Sampled | None]:
    """Two prompts, one of them in two chunks beside a decode; then both decode, and an idle third joins them."""
    first = [Segment(PROMPTS[0], 0, TABLES[0], 0, 0, True), Segment(PROMPTS[1][:20], 0, TABLES[1], 0, 0, False)]
    second = [Segment([3], 19, TABLES[0], 0, 1, True), Segment(PROMPTS[1][20:], 20, TABLES[1], 0, 0, True)]
    third = [Segment([5], 20, TABLES[0], 0, 2, True), Segment([7], 33, TABLES[1], 0, 1, True)]
    third.append(Segment([1, 2], 0, [30], 0, 0, True))
    return [sampled for step in (first, second, third) for sampled in runner.run(step)]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("width", "count"), [(2, None), (4, None), (2, 1), (4, 8)])
def test_tokens_and_kv_are_those_of_one_rank(width: int, count: int | None, variant: str) -> None:
    spec = replace(DEEP, **VARIANTS[variant])
    alone = ModelRunner(spec, 64, 4)
    expected = steps(alone)
    stages = on_stages(width, count, spec, steps)
    for mine, theirs in zip(stages[0][1], expected, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert mine.token == theirs.token
            assert mine.margin == pytest.approx(theirs.margin, abs=1e-4)
    for runner, _ in stages:
        layers = runner.member.layers(spec.num_layers)
        assert runner.cache.pool.shape[0] == len(layers) == len(runner._weights.layers)
        whole = alone.cache.pool[layers.start : layers.stop]
        torch.testing.assert_close(runner.cache.pool, whole, rtol=1e-4, atol=1e-5)
    assert sum(len(runner._weights.layers) for runner, _ in stages) == spec.num_layers


def test_only_the_first_stage_embeds_and_only_the_last_has_the_head() -> None:
    stages = on_stages(2, None, DEEP, steps)
    sizes = [(len(runner._weights.embedding), len(runner._weights.head.matrix)) for runner, _ in stages]
    assert sizes == [(97, 0), (0, 97)]
    assert [len(runner._weights.layers) for runner, _ in stages] == [2, 3]


def test_a_stage_works_on_one_micro_batch_after_the_other() -> None:
    """A step of three segments reaches the second stage as two messages, by default one for each stage."""
    first, second = (runner for runner, _ in on_stages(2, None, DEEP, steps))
    assert isinstance(first.stages, ThreadStages)
    assert isinstance(second.stages, ThreadStages)
    assert first.stages.received == []
    assert second.stages.received == [(19, 32), (20, 32), (1, 32), (13, 32), (1, 32), (3, 32)]


def test_stage_weights_are_those_of_the_whole_model() -> None:
    whole = load_weights(DEEP)
    for layers in (range(2), range(2, 5)):
        held = load_weights(DEEP, layers=layers).layers
        for mine, theirs in zip(held, whole.layers[layers.start : layers.stop], strict=True):
            assert torch.equal(mine.mlp.gate_up.matrix, theirs.mlp.gate_up.matrix)  # type: ignore[attr-defined]


@given(num=st.integers(1, 40), count=st.integers(1, 9))
def test_micro_batches_keep_order_and_are_even(num: int, count: int) -> None:
    segments = [Segment([i], 1, [0], 0, 0, True) for i in range(num)]
    groups = micro_batches(segments, count)
    assert list(chain(*groups)) == segments
    assert len(groups) == min(count, num)
    sizes = {len(group) for group in groups}
    assert max(sizes) - min(sizes) <= 1


def test_the_bubble_by_hand() -> None:
    """Two stages, one micro-batch: each idles half of the time. Four and four: 3 of 7 slots."""
    assert [bubble_share(2, 1), bubble_share(4, 4), bubble_share(1, 1)] == [0.5, 3 / 7, 0.0]


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_layers=2 of micro are fewer than 4 .*decode_pp of 2 at most"):
        Member(0, Division("pp", 4)).of(MICRO)
