"""What a scheduler plans with: sequences, and the chunks of them that make a step."""

from __future__ import annotations

from collections import abc
from dataclasses import dataclass

import msgspec
from mypy_extensions import mypyc_attr


@mypyc_attr(acyclic=True)
class Sequence:
    """A request inside one engine. Tokens known so far = prompt + outputs; ``num_computed`` of them have KV.

    ``max_output_tokens`` counts tokens that this engine still has to be asked for in total (a prefill instance
    makes 1). After preemption ``num_computed`` is 0 and all known tokens are computed again.
    """

    __slots__ = (
        "block_table",
        "keys",
        "max_output_tokens",
        "num_cached",
        "num_computed",
        "num_findable",
        "num_promoted",
        "num_remote",
        "outputs",
        "priority",
        "prompt",
        "request_id",
        "seed",
    )

    def __init__(
        self,
        request_id: int,
        prompt: abc.Sequence[int],
        max_output_tokens: int,
        outputs: list[int] | None = None,
        num_computed: int = 0,
        block_table: list[int] | None = None,
        seed: int = 0,
        priority: int = 0,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.max_output_tokens = max_output_tokens
        self.outputs: list[int] = [] if outputs is None else outputs
        self.num_computed = num_computed
        self.block_table: list[int] = [] if block_table is None else block_table
        self.seed = seed  # for sampling
        self.priority = priority  # for eviction
        self.keys: list[bytes] = []  # of its full blocks, as far as they were asked for
        self.num_cached = 0  # tokens that had KV when it was admitted, or last admitted again
        self.num_promoted = 0  # blocks of them that came from the host tier
        self.num_remote = 0  # blocks that came from the remote pool before it was queued
        self.num_findable = 0  # leading blocks of its table that the prefix cache knows by these very ids

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.outputs)

    @property
    def num_to_compute(self) -> int:
        """Known tokens without KV: 1 while decoding, more while (re)computing a prompt."""
        return self.num_tokens - self.num_computed

    @property
    def decoding(self) -> bool:
        """Only its newest output has no KV yet. (The last single token of a prompt is still prefill.)"""
        outputs = self.outputs  # not by num_to_compute: asked of every sequence in every step
        return bool(outputs) and len(self.prompt) + len(outputs) - self.num_computed == 1

    @property
    def max_kv_tokens(self) -> int:
        """Tokens whose KV is ever needed: the last output's is not."""
        return len(self.prompt) + self.max_output_tokens - 1

    @property
    def finished(self) -> bool:
        return len(self.outputs) >= self.max_output_tokens


class Chunk(msgspec.Struct, frozen=True):  # made for every sequence of every step
    """``num_tokens`` tokens of ``sequence`` from position ``start``, to be run in this step.

    ``samples`` is True when the chunk reaches the last known token, so that the step yields a new token.
    """

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def samples(self) -> bool:
        return self.start + self.num_tokens == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: prompt chunks and one-token decodes, all run together; sequences preempted while planning."""

    prefills: list[Chunk]
    decodes: list[Chunk]
    preempted: list[Sequence]

    @property
    def empty(self) -> bool:
        return not self.prefills and not self.decodes
