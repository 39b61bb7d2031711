"""The model as the engine sees it: plain Python in, plain Python out; tensors stay behind this door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile

import torch

from xpyd.kv.cache import KVCache
from xpyd.kv.layout import PoolOrder
from xpyd.model.batch import Batch, ChunkView, DecodeGroup, causal_mask
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.model.compiled import CompiledSteps, compiled_steps
from xpyd.model.graphs import CudaRecorder, DecodeGraphs, Recorder
from xpyd.model.parallel import Reducer
from xpyd.model.rope import Rope
from xpyd.model.sampled import Sampled
from xpyd.model.sampling import sample
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.segment import Segment
from xpyd.model.shard import Member
from xpyd.model.spec import ModelSpec
from xpyd.model.transformer import forward
from xpyd.model.weights import Weights, load_weights
from xpyd.placement import Division

__all__ = ["ModelRunner", "Segment"]


class ModelRunner:
    """Weights, pool and one forward pass: of a whole model, or with a ``reducer`` of one rank's shard of it.

    All ranks of an instance call ``run`` with the same segments; the tokens are drawn by its leader, shard rank 0.
    ``spec`` is the whole model's, the pool holds this rank's KV heads.

    Raises CheckpointError for a checkpoint that cannot be used, ValueError for a shape that cannot be run or that does
    not divide among the ranks.
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        sampling: SamplingConfig | None = None,
        num_threads: int = 1,
        device: str = "cpu",
        reducer: Reducer | None = None,
        order: PoolOrder | None = None,
        staging_bytes: int = 0,
        weights: Weights | None = None,
        member: Member | None = None,
        recorder: Recorder | None = None,
        in_c: bool = True,
    ) -> None:
        """``weights``: already loaded, in place of those that ``spec`` names. ``member``: where no reducer says it.

        ``recorder``: what records decode steps; by default CUDA graphs on a GPU, for whole dense models. ``in_c``
        False: torch runs the steps, as it does where ranks share a model: such runners can be compared.
        """
        spec.check_runs()
        torch.set_num_threads(num_threads)
        self.spec = resolve_spec(spec)
        self.member = member or _member(reducer)
        self.shard = self.member.shard
        self._reducer = reducer
        self.cache = KVCache(self.member.of(self.spec), num_blocks, block_size, device, order, staging_bytes)
        self._device = torch.device(device)
        self._sampling = sampling or SamplingConfig()
        layers = self.member.layers(self.spec.num_layers)
        self._weights = weights or load_weights(self.spec, device, self.shard, layers)
        self._rope = Rope.of(self.spec, device)
        self._graphs = self._recordings(recorder)
        self._compiled = self._compiled_steps() if in_c else None

    def shallow(self, num_layers: int) -> ModelRunner:
        """The first ``num_layers`` layers of a whole model with its own norm and head, greedy, and a pool beside it.

        Weights are shared, and the pool has as many blocks.
        """
        assert self._reducer is None, "a rank of several has only a part of each layer"
        return ModelRunner(
            replace(self.spec, num_layers=num_layers, checkpoint=None),
            self.cache.layout.num_blocks,
            self.cache.block_size,
            num_threads=torch.get_num_threads(),
            device=self._device.type,
            weights=replace(self._weights, layers=self._weights.layers[:num_layers]),
        )

    def run(self, segments: Sequence[Segment], on_layer: Callable[[int], None] | None = None) -> list[Sampled | None]:
        """Run one step; a token for each segment that samples, None for the others, in the order given.

        ``on_layer(layer)`` is called as soon as that layer's KV of all segments is in the pool. Followers get no token.
        """
        if self._compiled is not None:
            return self._run_compiled(self._compiled, segments, on_layer)
        logits = self.logits(segments, on_layer)
        if not self.draws:
            return [None] * len(segments)
        return _spread(segments, sample(logits, self._sampling, _seeds(segments)))

    @property
    def follows(self) -> bool:
        """Whether steps of decodes can follow on one another as ``FollowOn`` has it."""
        return self._compiled is not None and not self._sampling.temperature

    @property
    def compiled(self) -> CompiledSteps:
        """Its whole steps in C; only where it ``follows``."""
        assert self._compiled is not None, "steps follow on compiled ones"
        return self._compiled

    def logits(self, segments: Sequence[Segment], on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Run one step; the logits of the segments that sample, in the order given, [num_samples, vocab_size].

        A follower of a tensor-parallel instance gets the columns of its own shard only.
        """
        assert segments, "a step without segments"
        if self._compiled is not None:
            return self._compiled.run(segments, on_layer).clone()
        return self._torch_logits(segments, on_layer)

    @property
    def draws(self) -> bool:
        """Whether this rank has the logits, and so draws the tokens."""
        return self.shard.rank == 0

    def _run_compiled(
        self, compiled: CompiledSteps, segments: Sequence[Segment], on_layer: Callable[[int], None] | None
    ) -> list[Sampled | None]:
        """A step without torch, unless tokens are drawn: entering inference mode alone costs what a scheduler does."""
        assert segments, "a step without segments"
        logits = compiled.run(segments, on_layer)
        if self._sampling.temperature:
            return _spread(segments, sample(logits, self._sampling, _seeds(segments)))
        return _spread(segments, list(map(Sampled, *compiled.largest())))

    @torch.inference_mode()
    def _torch_logits(self, segments: Sequence[Segment], on_layer: Callable[[int], None] | None) -> torch.Tensor:
        # Decodes first, by length: sequences that attend together should be of similar length.
        order = sorted(range(len(segments)), key=lambda i: (not segments[i].is_decode, segments[i].end))
        batch = self._pack([segments[i] for i in order])
        if self._graphs is not None and not batch.chunks and len(batch.sampled_rows) == len(segments):
            logits = self._graphs.run(batch)
            if on_layer is not None:
                for layer in range(self.spec.num_layers):
                    on_layer(layer)
        else:
            logits = self._forward(batch, on_layer)
        sampled = [i for i in order if segments[i].samples]
        if sampled == sorted(sampled):
            return logits
        return logits[self._tensor(sorted(range(len(sampled)), key=sampled.__getitem__))]

    def _recordings(self, recorder: Recorder | None) -> DecodeGraphs | None:
        """None where steps are not recorded: on CPUs, among several ranks, and of experts, whose sizes vary."""
        if recorder is None and self._device.type == "cuda":
            recorder = CudaRecorder()
        if recorder is None or self.member.division.width > 1 or self.spec.experts is not None:
            return None
        size, window = self.cache.block_size, self.spec.sliding_window
        return DecodeGraphs(lambda batch: self._forward(batch, None), recorder, size, window)

    def _compiled_steps(self) -> CompiledSteps | None:
        """None where torch runs the steps: on a GPU, among several ranks, recorded, of a model that C does not know."""
        if self._graphs is not None or self.member.division.width > 1 or self._device.type != "cpu":
            return None
        return compiled_steps(self.spec, self._weights, self._rope, self.cache)

    def _forward(self, batch: Batch, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        return forward(self.spec, self._weights, self._rope, batch, self.cache, on_layer, self._reducer)

    def _pack(self, segments: list[Segment]) -> Batch:
        """``segments``, decodes first."""
        decodes = list(takewhile(lambda segment: segment.is_decode, segments))
        size = self.cache.block_size
        tokens = [segment.tokens[0] for segment in decodes]
        positions = [segment.start for segment in decodes]
        slots = [segment.block_table[segment.start // size] * size + segment.start % size for segment in decodes]
        rows = [row for row, segment in enumerate(decodes) if segment.samples]
        chunks: list[ChunkView] = []
        for segment in segments[len(decodes) :]:
            chunks.append(self._chunk(segment, len(tokens)))
            tokens += segment.tokens
            positions += range(segment.start, segment.end)
            slots += self.cache.slots(segment.block_table, segment.start, len(segment.tokens))
            if segment.samples:
                rows.append(len(tokens) - 1)
        sizes = [len(tokens)] * 3 + [len(rows)]
        packed = torch.split(self._tensor(tokens + positions + slots + rows), sizes)  # one tensor: one copy to a GPU
        return Batch(
            tokens=packed[0],
            positions=packed[1],
            slots=packed[2],
            decodes=self._decode_groups(decodes),
            chunks=chunks,
            sampled_rows=packed[3],
        )

    def _chunk(self, segment: Segment, begin: int) -> ChunkView:
        num_tokens = len(segment.tokens)
        window = self.spec.sliding_window
        plain = segment.start == 0 and (window is None or num_tokens <= window)
        return ChunkView(
            begin=begin,
            end=begin + num_tokens,
            start=segment.start,
            table=self._tensor(segment.block_table[: self._blocks_of(segment)]),
            mask=None if plain else causal_mask(segment.start, num_tokens, window, self._device),
        )

    def _decode_groups(self, segments: list[Segment]) -> list[DecodeGroup]:
        """Split decodes, sorted by length, so that none is padded to more than twice its own blocks.

        A recorded step has one group.
        """
        groups = []
        begin = 0
        widths = [self._blocks_of(segment) for segment in segments]
        for end in range(1, len(segments) + 1):
            if end == len(segments) or (self._graphs is None and widths[end] > 2 * widths[begin]):
                groups.append(self._decode_group(segments[begin:end], begin, widths[end - 1]))
                begin = end
        return groups

    def _decode_group(self, segments: list[Segment], begin: int, width: int) -> DecodeGroup:
        padding = [0] * width
        tables = [
            table if len(table := segment.block_table) == width else (table + padding)[:width] for segment in segments
        ]
        return DecodeGroup(
            begin=begin,
            end=begin + len(segments),
            tables=self._tensor(tables),
            ends=self._tensor([segment.start + 1 for segment in segments]),
            window=self.spec.sliding_window,
            block_size=self.cache.block_size,
        )

    def _blocks_of(self, segment: Segment) -> int:
        """Blocks that hold the sequence up to this segment's end; its table may be longer."""
        return -(-segment.end // self.cache.block_size)

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _member(reducer: Reducer | None) -> Member:
    return Member() if reducer is None else Member(reducer.shard.rank, Division("tp", reducer.shard.width))


def _seeds(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    return [(segment.seed, segment.index) for segment in segments if segment.samples]


def _spread(segments: Sequence[Segment], drawn: list[Sampled]) -> list[Sampled | None]:
    """The tokens ``drawn`` at the places of the segments that sample."""
    if len(drawn) == len(segments):
        return [*drawn]
    following = iter(drawn)
    return [next(following) if segment.samples else None for segment in segments]
