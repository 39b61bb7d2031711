"""Codecs on real KV: their seconds as a hand-off pays them, and what they do to the tokens that follow.

Prompts are prefilled once, into blocks of their own. Each codec then carries their KV to a second set of blocks, where
decoding goes on: greedily on its own, and once more fed with the exact arm's tokens (teacher forcing). The exact arm
decodes from a plain copy in the same blocks, in batches of the same shape, so that codec ``none`` must equal it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from time import perf_counter_ns, thread_time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.codec.cells import CellCodec
from xpyd.kv.codec.config import CodecConfig
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.spec import ModelSpec
from xpyd.records import CodecPointRow, DivergenceRow
from xpyd.units import NS_PER_S
from xpyd.worker.divergence import kl_nats, logit_errors, margins
from xpyd.worker.prompts import place_prompts
from xpyd.worker.sweeps import CodecSweep

Logits = NDArray[Any]  # [num_prompts, vocab_size]
Tokens = NDArray[np.int64]  # [num_prompts]


class CodecProbe:
    """One model, its prompts prefilled. Raises what ModelRunner raises, ValueError for prompts that do not fit it."""

    def __init__(self, spec: ModelSpec, sweep: CodecSweep) -> None:
        self._sweep = sweep
        self._runner = ModelRunner(spec, sweep.num_blocks, sweep.block_size)
        self._cache = self._runner.cache
        self._prompts = place_prompts(sweep, self._runner.spec.vocab_size)
        self._codecs = {config: CellCodec(config, self._cache.cells) for config in sweep.codecs}
        longest = max(len(prompt.source) for prompt in self._prompts)
        layer_bytes = max(coded.codec.max_encoded_bytes(longest) for coded in self._codecs.values())
        self._cells = [(self._cells_of(prompt.source), self._cells_of(prompt.landed)) for prompt in self._prompts]
        self._staging = np.zeros((self._cache.layout.num_layers, layer_bytes), np.uint8)
        self._first = self._prefill()

    def _prefill(self) -> Tokens:
        """Run every prompt; KV stays in its source blocks. Token 0 is the prefill rank's, the same in all arms."""
        segments = [Segment(prompt.tokens, 0, prompt.source, 0, 0, True) for prompt in self._prompts]
        return np.array([int(self._runner.logits([segment])[0].argmax()) for segment in segments])

    def time(self) -> Iterator[CodecPointRow]:
        """Every codec on every prompt, in a fresh order each repeat; the first round warms up and is not kept."""
        generator = np.random.default_rng(self._sweep.seed)
        for repeat in range(-1, self._sweep.num_repeats):
            for which in generator.permutation(len(self._sweep.codecs)):
                config = self._sweep.codecs[which]
                for number in range(len(self._prompts)):
                    row = self._time_one(config, number, repeat)
                    if repeat >= 0:
                        yield row

    def _time_one(self, config: CodecConfig, number: int, repeat: int) -> CodecPointRow:
        """CPU time: a worker has its core to itself, the caller of this experiment may not."""
        gc.disable()
        wall_ns, begin_ns = perf_counter_ns(), thread_time_ns()
        sizes = self._encode(config, number)
        middle_ns = thread_time_ns()
        self._decode(config, number, sizes)
        end_ns = thread_time_ns()
        wall_ns = perf_counter_ns() - wall_ns
        gc.enable()
        prompt = self._prompts[number]
        return CodecPointRow(
            codec=config.label,
            prompt=number,
            input_len=len(prompt.tokens),
            repeat=repeat,
            num_layers=len(sizes),
            raw_bytes=len(sizes) * len(prompt.source) * self._cache.layout.block_bytes,
            encoded_bytes=sum(sizes),
            encode_s=(middle_ns - begin_ns) / NS_PER_S,
            decode_s=(end_ns - middle_ns) / NS_PER_S,
            wall_s=wall_ns / NS_PER_S,
        )

    def _encode(self, config: CodecConfig, number: int) -> list[int]:
        """A prompt's KV into staging; the bytes of each layer."""
        coded, prompt, (source, _) = self._codecs[config], self._prompts[number], self._cells[number]
        used = prompt.used_in_last(self._cache.block_size)
        return [
            coded.encode(cells, room, frozenset([int(cells[-1])]), used)
            for cells, room in zip(source, self._staging, strict=True)
        ]

    def _decode(self, config: CodecConfig, number: int, sizes: list[int]) -> None:
        """Out of staging into the landing blocks."""
        _, landed = self._cells[number]
        for layer, nbytes in enumerate(sizes):
            self._codecs[config].decode(self._staging[layer, :nbytes], landed[layer])

    def _cells_of(self, table: list[int]) -> NDArray[np.int64]:
        """The first byte of every block in every layer, [num_layers, len(table)]."""
        layout = self._cache.layout
        return np.array([[layout.offset(layer, block) for block in table] for layer in range(layout.num_layers)])

    def exact(self) -> ExactArm:
        """Decode greedily from KV that was only copied."""
        for prompt in self._prompts:
            self._cache.pool[:, prompt.landed] = self._cache.pool[:, prompt.source]
        logits = list(self._continue(None))
        return ExactArm(logits, _greedy(logits))

    def diverge(self, config: CodecConfig, exact: ExactArm) -> Iterator[DivergenceRow]:
        """One row for each prompt and decode step: the exact arm beside the one that decodes from coded KV."""
        self._land(config)
        coded_tokens = _greedy(list(self._continue(None)))
        self._land(config)  # again: decoding wrote into the last of these blocks
        forced = self._continue([self._first, *exact.tokens])
        for index, (ours, theirs) in enumerate(zip(exact.logits, forced, strict=True)):
            largest, mean = logit_errors(ours, theirs)
            columns = (kl_nats(ours, theirs), largest, mean, margins(ours), ours.std(axis=-1))
            for number, prompt in enumerate(self._prompts):
                tokens = (exact.tokens[index], coded_tokens[index], theirs.argmax(axis=-1))
                yield DivergenceRow(
                    config.label,
                    number,
                    len(prompt.tokens),
                    index + 1,
                    *(int(each[number]) for each in tokens),
                    *(float(each[number]) for each in columns),
                )

    def _land(self, config: CodecConfig) -> None:
        for number in range(len(self._prompts)):
            self._decode(config, number, self._encode(config, number))

    def _continue(self, forced: list[Tokens] | None) -> Iterator[Logits]:
        """Logits of each decode step behind token 0: fed with its own greedy tokens, or with those ``forced``."""
        tokens = self._first
        for step in range(self._sweep.output_len - 1):
            if forced is not None:
                tokens = forced[step]
            segments = [
                Segment([int(token)], len(prompt.tokens) + step, prompt.landing, 0, step + 1, True)
                for token, prompt in zip(tokens, self._prompts, strict=True)
            ]
            logits = self._runner.logits(segments).cpu().numpy()
            tokens = logits.argmax(axis=-1)
            yield logits


class ExactArm:
    """The reference: logits of every decode step, and the tokens they yield."""

    def __init__(self, logits: list[Logits], tokens: list[Tokens]) -> None:
        self.logits = logits
        self.tokens = tokens


def _greedy(logits: list[Logits]) -> list[Tokens]:
    return [step.argmax(axis=-1) for step in logits]
