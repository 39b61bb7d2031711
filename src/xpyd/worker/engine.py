"""One engine step: schedule, run, commit. The same code serves prefill, decode and colocated workers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import islice

import msgspec

from xpyd.kv.arenas import Arenas
from xpyd.kv.entries import BlockMove
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.sampled import Sampled
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Chunk, Sequence, StepPlan
from xpyd.worker.output import Output
from xpyd.worker.speculation import Speculator, agreed

OnLayer = Callable[[int], None]
Tell = Callable[[StepPlan, list[Segment]], None]


class Engine:
    """A model runner and a scheduler over the same pool of KV blocks; with a speculator, a step guesses ahead."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        speculator: Speculator | None = None,
        arenas: Arenas | None = None,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.speculator = speculator
        self.arenas = arenas or Arenas(runner.cache)
        self.moves: list[BlockMove] = []  # made before the running step: followers make them too

    @property
    def repeats(self) -> bool:
        """Whether steps of decodes can follow on one another without this engine (``FollowOn``)."""
        return self.speculator is None and self.runner.follows

    def settle(self) -> None:
        """Copy the blocks that must be copied before anything is written into those handed out since the last time."""
        self.moves = self.scheduler.take_moves()
        if self.moves:
            self.arenas.move(self.moves)

    def run(
        self,
        plan: StepPlan,
        on_layer: OnLayer | None = None,
        tell: Tell | None = None,
        on_draft: Callable[[], None] | None = None,
    ) -> list[Output]:
        """Run a scheduled step; ``on_layer(layer)`` is called as soon as a layer's KV is in the pool.

        ``tell`` passes the step on to the other ranks of the instance before it runs here. ``on_draft`` is called
        between the layers of a draft model. Outputs of one sequence follow each other: several where guesses came true.
        """
        chunks = [*plan.decodes, *plan.prefills]
        if self.speculator is not None:
            return self._run_guesses(self.speculator, plan, chunks, on_layer, tell, on_draft)
        segments = [*map(_decode_segment, plan.decodes), *map(_segment, plan.prefills)]
        results = self._run_segments(plan, segments, on_layer, tell)
        return [
            Output(chunk.sequence, len(chunk.sequence.outputs), sampled)
            for chunk, sampled in zip(chunks, results, strict=True)
            if sampled is not None
        ]

    def _run_segments(
        self, plan: StepPlan, segments: list[Segment], on_layer: OnLayer | None, tell: Tell | None
    ) -> list[Sampled | None]:
        self.settle()
        if tell is not None:
            tell(plan, segments)
        return self.runner.run(segments, on_layer)

    def _run_guesses(
        self,
        speculator: Speculator,
        plan: StepPlan,
        chunks: list[Chunk],
        on_layer: OnLayer | None,
        tell: Tell | None,
        on_draft: Callable[[], None] | None,
    ) -> list[Output]:
        guesses = speculator.guess(plan.decodes, on_draft)
        runs = [_segments(chunk, guesses.get(chunk.sequence.request_id, [])) for chunk in chunks]
        results = iter(self._run_segments(plan, [segment for run in runs for segment in run], on_layer, tell))
        outputs: list[Output] = []
        num_accepted = 0
        for chunk, run in zip(chunks, runs, strict=True):
            choices = [sampled for sampled in islice(results, len(run)) if sampled is not None]
            right = agreed(choices, guesses.get(chunk.sequence.request_id, []))
            num_accepted += max(0, len(right) - 1)
            known = len(chunk.sequence.outputs)
            outputs += [Output(chunk.sequence, known + i, sampled) for i, sampled in enumerate(right)]
        speculator.count(num_accepted)
        return outputs

    def commit(self, plan: StepPlan, outputs: list[Output]) -> list[Sequence]:
        """Record what was computed; returns the sequences that are finished here."""
        if self.speculator is None:
            return self.scheduler.commit(plan, {o.sequence.request_id: o.sampled.token for o in outputs})
        tokens: defaultdict[int, list[int]] = defaultdict(list)
        for output in outputs:
            tokens[output.sequence.request_id].append(output.sampled.token)
        finished = self.scheduler.commit(plan, {request_id: made[0] for request_id, made in tokens.items()})
        for chunk in plan.decodes:
            if self.scheduler.extend(chunk.sequence, tokens[chunk.sequence.request_id][1:]):
                finished.append(chunk.sequence)
        return finished


def _segments(chunk: Chunk, guesses: list[int]) -> list[Segment]:
    """The chunk, and behind its newest token every guess as a decode of its own."""
    own = _segment(chunk)
    return [
        own,
        *(
            msgspec.structs.replace(own, tokens=[guess], start=own.end + i, index=own.index + 1 + i)
            for i, guess in enumerate(guesses)
        ),
    ]


def _decode_segment(chunk: Chunk) -> Segment:
    """As ``_segment``, of a decode, which runs and follows on its sequence's newest token: they are most segments."""
    sequence = chunk.sequence
    outputs = sequence.outputs
    return Segment(outputs[-1:], chunk.start, sequence.block_table, sequence.seed, len(outputs), True)


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
    head = [*sequence.prompt[start : start + num_tokens]]
    return head + sequence.outputs[: num_tokens - len(head)]
