"""The model as the engine sees it: plain Python in, plain Python out; tensors stay behind this door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from xpyd.kv.cache import KVCache
from xpyd.model.attention import ChunkView, DecodeGroup, causal_mask, decode_mask
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.model.rope import inverse_frequencies
from xpyd.model.sampling import Sampled, sample
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.model.transformer import Batch, forward
from xpyd.model.weights import load_weights


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of one sequence to run in this step, from position ``start`` on.

    ``samples``: the last of them yields the request's ``index``-th output token, drawn with ``seed``.
    """

    tokens: list[int]
    start: int
    block_table: list[int]
    seed: int
    index: int
    samples: bool

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class ModelRunner:
    """Weights, pool and one forward pass. Raises CheckpointError for a checkpoint that cannot be used."""

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        sampling: SamplingConfig | None = None,
        num_threads: int = 1,
        device: str = "cpu",
    ) -> None:
        torch.set_num_threads(num_threads)
        self.spec = resolve_spec(spec)
        self.cache = KVCache(self.spec, num_blocks, block_size, device)
        self._sampling = sampling or SamplingConfig()
        self._weights = load_weights(self.spec, device)
        self._frequencies = inverse_frequencies(self.spec).to(device)

    @torch.inference_mode()
    def run(
        self, segments: Sequence[Segment], on_layer: Callable[[int], None] | None = None
    ) -> list[Sampled | None]:
        """Run one step; a token for each segment that samples, None for the others, in the order given."""
        order = sorted(range(len(segments)), key=lambda i: not _is_decode(segments[i]))  # decodes first, stable
        packed = [segments[i] for i in order]
        batch = self._pack(packed)
        logits = forward(self.spec, self._weights, self._frequencies, batch, self.cache, on_layer)
        seeds = [(segment.seed, segment.index) for segment in packed if segment.samples]
        drawn = iter(sample(logits, self._sampling, seeds) if seeds else ())
        results: list[Sampled | None] = [None] * len(segments)
        for i, segment in zip(order, packed, strict=True):
            if segment.samples:
                results[i] = next(drawn)
        return results

    def logits(self, segments: Sequence[Segment]) -> torch.Tensor:
        """Logits [num_samples, vocab_size] of one step without sampling, for tests; decodes come first."""
        with torch.inference_mode():
            packed = sorted(segments, key=lambda segment: not _is_decode(segment))
            return forward(self.spec, self._weights, self._frequencies, self._pack(packed), self.cache, None)

    def _pack(self, segments: Sequence[Segment]) -> Batch:
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        chunks: list[ChunkView] = []
        rows: list[int] = []
        for segment in segments:
            begin = len(tokens)
            tokens += segment.tokens
            positions += range(segment.start, segment.end)
            slots += self.cache.slots(segment.block_table, segment.start, len(segment.tokens))
            if segment.samples:
                rows.append(len(tokens) - 1)
            if not _is_decode(segment):
                chunks.append(self._chunk(segment, begin))
        decodes = [segment for segment in segments if _is_decode(segment)]
        return Batch(
            tokens=torch.tensor(tokens),
            positions=torch.tensor(positions),
            slots=torch.tensor(slots),
            decodes=self._decode_group(decodes) if decodes else None,
            num_decodes=len(decodes),
            chunks=chunks,
            sampled_rows=torch.tensor(rows, dtype=torch.long),
        )

    def _chunk(self, segment: Segment, begin: int) -> ChunkView:
        num_tokens = len(segment.tokens)
        window = self.spec.sliding_window
        plain = segment.start == 0 and (window is None or num_tokens <= window)
        return ChunkView(
            begin=begin,
            end=begin + num_tokens,
            start=segment.start,
            table=torch.tensor(segment.block_table),
            mask=None if plain else causal_mask(segment.start, num_tokens, window),
        )

    def _decode_group(self, segments: Sequence[Segment]) -> DecodeGroup:
        size = self.cache.block_size
        lens = [segment.end for segment in segments]
        width = max(-(-end // size) for end in lens)
        tables = [(segment.block_table + [0] * width)[:width] for segment in segments]
        return DecodeGroup(
            tables=torch.tensor(tables),
            mask=decode_mask(torch.tensor(lens), width * size, self.spec.sliding_window),
        )


def _is_decode(segment: Segment) -> bool:
    """One token behind a context runs in the batched decode path, whatever it is for."""
    return len(segment.tokens) == 1 and segment.start > 0
