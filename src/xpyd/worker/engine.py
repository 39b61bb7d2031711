"""One engine step: schedule, run, commit. The same code serves prefill, decode and colocated workers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.sampling import Sampled
from xpyd.scheduler.base import Chunk, Scheduler, Sequence, StepPlan


@dataclass(frozen=True, slots=True)
class Output:
    """One token that a step yielded: the ``index``-th output of its request."""

    sequence: Sequence
    index: int
    sampled: Sampled


class Engine:
    """A model runner and a scheduler over the same pool of KV blocks."""

    def __init__(self, runner: ModelRunner, scheduler: Scheduler) -> None:
        self.runner = runner
        self.scheduler = scheduler

    def run(
        self,
        plan: StepPlan,
        on_layer: Callable[[int], None] | None = None,
        tell: Callable[[StepPlan, list[Segment]], None] | None = None,
    ) -> list[Output]:
        """Run a scheduled step; ``on_layer(layer)`` is called as soon as a layer's KV is in the pool.

        ``tell`` passes the step on to the other ranks of the instance before it runs here.
        """
        chunks = [*plan.decodes, *plan.prefills]
        segments = [_segment(chunk) for chunk in chunks]
        if tell is not None:
            tell(plan, segments)
        results = self.runner.run(segments, on_layer)
        return [
            Output(chunk.sequence, len(chunk.sequence.outputs), sampled)
            for chunk, sampled in zip(chunks, results, strict=True)
            if sampled is not None
        ]

    def commit(self, plan: StepPlan, outputs: list[Output]) -> list[Sequence]:
        """Record what was computed; returns the sequences that are finished here."""
        return self.scheduler.commit(plan, {o.sequence.request_id: o.sampled.token for o in outputs})


def _segment(chunk: Chunk) -> Segment:
    sequence = chunk.sequence
    return Segment(
        tokens=_tokens(sequence, chunk.start, chunk.num_tokens),
        start=chunk.start,
        block_table=sequence.block_table,
        seed=sequence.seed,
        index=len(sequence.outputs),
        samples=chunk.samples,
    )


def _tokens(sequence: Sequence, start: int, num_tokens: int) -> list[int]:
    """Known tokens [start, start + num_tokens): prompt first, then outputs (recompute runs over both)."""
    prompt_len = len(sequence.prompt)
    if start >= prompt_len:
        return sequence.outputs[start - prompt_len : start - prompt_len + num_tokens]
    head = sequence.prompt[start : start + num_tokens]
    return head + sequence.outputs[: num_tokens - len(head)]
