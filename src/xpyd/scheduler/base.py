"""What every scheduler shares: sequences, the plan of one step, admission by free blocks, preemption by recompute.

Pure policy: ints and dataclasses only, no tensors and no ranks. A concrete scheduler decides one thing, how a step's
token budget is filled (``fill``). The engine's loop is ``plan = schedule(); run(plan); commit(...)``.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside one engine. Tokens known so far = prompt + outputs; ``num_computed`` of them have KV.

    ``max_output_tokens`` counts tokens that this engine still has to be asked for in total (a prefill instance
    makes 1). After preemption ``num_computed`` is 0 and all known tokens are computed again.
    """

    request_id: int
    prompt: list[int]
    max_output_tokens: int
    outputs: list[int] = field(default_factory=list)
    num_computed: int = 0
    block_table: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.outputs)

    @property
    def num_to_compute(self) -> int:
        """Known tokens without KV: 1 while decoding, more while (re)computing a prompt."""
        return self.num_tokens - self.num_computed

    @property
    def finished(self) -> bool:
        return len(self.outputs) >= self.max_output_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
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
