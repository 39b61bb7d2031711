"""Pipeline parallelism: the layers of an instance divided among its ranks, hidden states passed on from stage to stage.

A step's segments run as micro-batches one behind the other, so that a stage works on one while the next stage has the
one before (GPipe, arXiv:1811.06965). A step ends with its last micro-batch, so stages idle at its begin and its end
(``economics.pipeline.bubble_share``). The last stage draws the tokens, and gives them to the leader, the first: a few
bytes in place of the logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from xpyd.model.batch import Batch
from xpyd.model.exchange import Pending
from xpyd.model.group import Group
from xpyd.model.runner import ModelRunner
from xpyd.model.sampled import Sampled
from xpyd.model.segment import Segment
from xpyd.model.shard import Member, Shard
from xpyd.model.spec import ModelSpec
from xpyd.model.transformer import logits_of, run_layers
from xpyd.placement import Division

OnLayer = Callable[[int], None]
TAG_DRAWN = 1


def micro_batches(segments: Sequence[Segment], count: int) -> list[list[Segment]]:
    """``segments`` in ``count`` groups of equal number, or as near as it gets; fewer where there are fewer segments."""
    groups = min(count, len(segments))
    return [[segments[i] for i in Shard(group, groups).part(len(segments))] for group in range(groups)]


class Stages(Protocol):
    """The ranks of one pipeline, seen from one of them. ``idle`` is called over and over while a call waits."""

    member: Member

    def receive(self, hidden: torch.Tensor, idle: Callable[[], None]) -> None:
        """The next micro-batch's hidden state from the stage before, into ``hidden``."""

    def send(self, hidden: torch.Tensor) -> None:
        """Start to send it to the next stage; complete by the end of the step (``deliver``)."""

    def progress(self) -> None:
        """Let what was sent move on: a large message needs its sender."""

    def deliver(self, drawn: Any, idle: Callable[[], None]) -> Any:
        """What the last stage drew, on the leader; ``drawn`` itself elsewhere."""


class GroupStages:
    """Over the group of the instance's ranks; what was drawn goes over MPI, as an object."""

    def __init__(self, group: Group) -> None:
        self.member = Member(group.rank, Division("pp", group.width))
        self._group = group
        self._flying: list[Pending] = []

    def receive(self, hidden: torch.Tensor, idle: Callable[[], None]) -> None:
        self._group.receive(hidden, self.member.rank - 1).finish(idle)

    def send(self, hidden: torch.Tensor) -> None:
        self._flying.append(self._group.send(hidden.contiguous(), self.member.rank + 1))

    def progress(self) -> None:
        self._flying = [pending for pending in self._flying if not pending.progress()]

    def deliver(self, drawn: Any, idle: Callable[[], None]) -> Any:
        rank, last, comm = self.member.rank, self.member.division.width - 1, self._group.comm
        for pending in self._flying:
            pending.finish(idle)
        self._flying = []
        with self._group.meter.timed():
            if rank == last:
                comm.send(drawn, dest=0, tag=TAG_DRAWN)
            elif rank == 0:
                while not comm.iprobe(source=last, tag=TAG_DRAWN):
                    idle()
                    os.sched_yield()
                return comm.recv(source=last, tag=TAG_DRAWN)
        return drawn


class PipelineRunner(ModelRunner):
    """One stage: its layers, their KV, and the embedding or the head where it is the first or the last.

    All stages call ``run`` with the same segments. ``on_layer`` is called after each layer of each micro-batch, and
    while the stage waits for others: KV of this instance's own steps never leaves it, and a wait is good for messages.
    """

    def __init__(
        self,
        stages: Stages,
        num_micro_batches: int | None,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        **options: Any,
    ) -> None:
        """``num_micro_batches``: default one for each stage. The rest as ModelRunner's."""
        super().__init__(spec, num_blocks, block_size, member=stages.member, **options)
        self.stages = stages
        self.num_micro_batches = num_micro_batches or stages.member.division.width  # may change between steps

    @property
    def draws(self) -> bool:
        return self.member.rank == self.member.division.width - 1

    def run(self, segments: Sequence[Segment], on_layer: OnLayer | None = None) -> list[Sampled | None]:
        drawn: list[Sampled | None] = []
        for group in micro_batches(segments, self.num_micro_batches):
            drawn += super().run(group, on_layer)
        delivered: list[Sampled | None] = self.stages.deliver(drawn, _idle(on_layer))
        return delivered

    def _forward(self, batch: Batch, on_layer: OnLayer | None) -> torch.Tensor:
        """Logits on the last stage, none of them elsewhere: [num_samples, 0]."""
        if self.member.rank == 0:
            x = self._weights.embedding[batch.tokens]
        else:
            x = self._weights.norm.new_empty((len(batch.tokens), self.spec.hidden_size))
            self.stages.receive(x, _idle(on_layer))

        def between(layer: int) -> None:
            self.stages.progress()
            if on_layer is not None:
                on_layer(layer)

        x = run_layers(self.spec, self._weights, self._rope, x, batch, self.cache, between)
        if self.draws:
            return logits_of(self.spec, self._weights, x, batch)
        self.stages.send(x)
        return x.new_empty((len(batch.sampled_rows), 0))


def _idle(on_layer: OnLayer | None) -> Callable[[], None]:
    """What to do while waiting: as between two layers."""
    return (lambda: None) if on_layer is None else (lambda: on_layer(0))
