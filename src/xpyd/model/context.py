"""Context parallelism: the tokens of a prompt divided among the ranks of an instance, each with the whole model.

Only attention needs what other ranks have. In each layer the ranks gather the keys and values of the step's tokens from
all of them, as Llama 3 was trained (arXiv:2407.21783, section 3.3.2), and then attend with their own queries. Next to
ring attention (arXiv:2310.01889) nothing is merged from partial softmaxes: every rank runs the kernels of a single one,
and the same mask. The gather is not overlapped; keys and values are few beside the queries that meet them.

What is gathered goes into every rank's pool. So later chunks of a prompt find their context where one rank finds it,
and a hand-off takes an equal share of the blocks from each rank; but a pool holds no more tokens than a single rank's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import msgspec
import torch

from xpyd.model.batch import Batch
from xpyd.model.runner import ModelRunner
from xpyd.model.segment import Segment
from xpyd.model.shard import Member, Shard
from xpyd.model.spec import ModelSpec
from xpyd.model.transformer import logits_of, run_layers
from xpyd.placement import Division, Split


def pieces(num_tokens: int, rank: int, width: int, split: Split) -> list[range]:
    """Which of ``num_tokens`` tokens in order rank ``rank`` of ``width`` computes; the leader has the last one.

    zigzag: of ``2 * width`` equal pieces one from each end, so that under a causal mask all ranks have equally many
    pairs of queries and keys. contiguous: one piece; the leader's, the last, has almost ``2 * width - 1`` times the
    pairs of the first.
    """
    if split == "contiguous":
        return [Shard(width - 1 - rank, width).part(num_tokens)]
    first, second = (Shard(piece, 2 * width).part(num_tokens) for piece in (rank, 2 * width - 1 - rank))
    if first.stop == second.start:
        return [range(first.start, second.stop)]
    return [piece for piece in (first, second) if piece]


def own_segments(segments: Sequence[Segment], rank: int, width: int, split: Split) -> list[tuple[int, Segment]]:
    """The parts of ``segments`` that a rank runs, each with the number of its segment, in the order of packing.

    Decodes first, by length, as everywhere: a piece may be a single token behind its context.
    """
    found = [
        (number, _part(segment, piece))
        for number, segment in enumerate(segments)
        for piece in pieces(len(segment.tokens), rank, width, split)
        if piece
    ]
    return sorted(found, key=lambda part: (not part[1].is_decode, part[1].end))


def _part(segment: Segment, piece: range) -> Segment:
    return msgspec.structs.replace(
        segment,
        tokens=segment.tokens[piece.start : piece.stop],
        start=segment.start + piece.start,
        samples=segment.samples and piece.stop == len(segment.tokens),
    )


class Gatherer(Protocol):
    """The ranks of one instance, seen from one of them; a ``group.Group`` is one."""

    rank: int
    width: int

    def gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """The ``counts[rank]`` rows of every rank, [sum(counts), width], from this rank's [counts[rank], width]."""


class ContextRunner(ModelRunner):
    """One rank of a context-parallel instance; all ranks call ``run`` with the same segments, the leader draws.

    A step in which no segment has a token for every piece is run whole by each rank, without a gather.
    """

    def __init__(
        self, gatherer: Gatherer, split: Split, spec: ModelSpec, num_blocks: int, block_size: int, **options: Any
    ) -> None:
        member = Member(gatherer.rank, Division("cp", gatherer.width))
        super().__init__(spec, num_blocks, block_size, member=member, **options)
        self.gatherer = gatherer
        self.split: Split = split  # may be changed between steps, on all ranks alike
        self._counts: list[int] = []  # of the running step: the tokens of each rank; none where it is not divided

    @property
    def draws(self) -> bool:
        return self.member.rank == 0

    def _pack(self, segments: list[Segment]) -> Batch:
        """This rank's tokens, with the slots of all ranks' in the order in which they are gathered."""
        width = self.member.division.width
        if max(len(segment.tokens) for segment in segments) < 2 * width:
            self._counts = []
            return super()._pack(segments)
        parts = [own_segments(segments, rank, width, self.split) for rank in range(width)]
        self._counts = [sum(len(part.tokens) for _, part in own) for own in parts]
        slots = [
            slot
            for own in parts
            for _, part in own
            for slot in self.cache.slots(part.block_table, part.start, len(part.tokens))
        ]
        mine = parts[self.member.rank]
        batch = super()._pack([part for _, part in mine])
        return replace(batch, slots=self._tensor(slots), sampled_rows=self._sampled_rows(segments, mine, batch))

    def _sampled_rows(self, segments: list[Segment], mine: list[tuple[int, Segment]], batch: Batch) -> torch.Tensor:
        """In the order of ``segments``, in which logits are returned; their parts may lie in another."""
        if not self.draws:
            return self._tensor([0] * sum(segment.samples for segment in segments))  # no more than their number is read
        numbers = [number for number, part in mine if part.samples]
        return batch.sampled_rows[self._tensor(sorted(range(len(numbers)), key=numbers.__getitem__))]

    def _forward(self, batch: Batch, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        if not self._counts:
            return super()._forward(batch, on_layer)
        x = self._weights.embedding[batch.tokens]
        x = run_layers(self.spec, self._weights, self._rope, x, batch, self.cache, on_layer, gather=self._gather)
        if not self.draws:
            return x.new_empty((len(batch.sampled_rows), 0))
        return logits_of(self.spec, self._weights, x, batch)

    def _gather(self, planes: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The planes of all ranks' tokens, each [num_tokens, num_kv_heads, kv_head_dim]: one exchange per layer."""
        shapes = [plane.shape[1:] for plane in planes]
        rows = torch.cat([plane.flatten(1) for plane in planes], dim=1)
        every = self.gatherer.gather(rows, self._counts)
        parts = torch.split(every, [shape.numel() for shape in shapes], dim=1)
        return tuple(part.view(len(part), *shape) for part, shape in zip(parts, shapes, strict=True))
