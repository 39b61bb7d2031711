"""What guesses the next tokens of a decoding request: an n-gram found in its own text, or a smaller model.

Guesses only cost or save time: every one is verified by the model before it is emitted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Protocol

from xpyd.model.runner import ModelRunner, Segment
from xpyd.scheduler.sequence import Sequence as Decoding

TOKEN_BYTES = array("i").itemsize


@dataclass(frozen=True, slots=True)
class Wanted:
    """A decoding sequence, and how many of its next tokens may be guessed; 0: none, but it goes on decoding."""

    sequence: Decoding
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """``guesses[i]`` for the i-th sequence, at most as many as wanted. The draft's own prefill is counted apart."""

    guesses: list[list[int]]
    num_prefill_tokens: int = 0
    prefill_ns: int = 0


class Draft(Protocol):
    """Proposes tokens. It is asked once a step, with all sequences that decode in it."""

    def propose(self, wanted: Sequence[Wanted], on_layer: Callable[[int], None] | None) -> Proposal:
        """``on_layer`` is called between the layers of a draft that has some: it may take a while."""


class NgramDraft:
    """Prompt lookup: what followed the last tokens where they stood before, the longest match and the latest first."""

    def __init__(self, max_ngram: int) -> None:
        self._max_ngram = max_ngram

    def propose(self, wanted: Sequence[Wanted], on_layer: Callable[[int], None] | None) -> Proposal:
        return Proposal([self._look_up(_known(each.sequence), each.num_tokens) for each in wanted])

    def _look_up(self, tokens: list[int], num_tokens: int) -> list[int]:
        text = array("i", tokens).tobytes()
        for length in range(min(self._max_ngram, len(tokens) - 1), 0, -1):
            found = _rfind(text, text[-length * TOKEN_BYTES :])
            if found is not None:
                return tokens[found + length : found + length + num_tokens]
        return []


def _rfind(text: bytes, pattern: bytes) -> int | None:
    """The last place, in tokens, where ``pattern`` stands in ``text`` before its very end; None: nowhere."""
    end = len(text) - 1
    while (at := text.rfind(pattern, 0, end)) >= 0:
        if at % TOKEN_BYTES == 0:
            return at // TOKEN_BYTES
        end = at + len(pattern) - 1
    return None


@dataclass(slots=True)
class Progress:
    """What the draft's KV holds of one sequence: ``num_computed`` known tokens, then ``guesses`` that it ran itself."""

    table: list[int]
    num_computed: int = 0
    guesses: list[int] = field(default_factory=list)


class ModelDraft:
    """A smaller model, greedy, with a KV pool of its own in the blocks of the same block tables.

    KV that was handed off is the model's alone: the draft computes a prompt's itself, at most ``prefill_budget`` tokens
    a step beside the decodes, and a sequence is not guessed for until it has caught up.
    """

    def __init__(self, runner: ModelRunner, prefill_budget: int) -> None:
        self._runner = runner
        self._prefill_budget = prefill_budget
        self._progress: dict[int, Progress] = {}  # by request

    def propose(self, wanted: Sequence[Wanted], on_layer: Callable[[int], None] | None) -> Proposal:
        self._progress = {each.sequence.request_id: self._look(each.sequence) for each in wanted}
        begin_ns = perf_counter_ns()
        num_prefilled = self._catch_up(wanted, on_layer)
        prefill_ns = perf_counter_ns() - begin_ns if num_prefilled else 0
        self._guess([each for each in wanted if each.num_tokens and self._ready(each.sequence)], on_layer)
        guesses = [self._made(each.sequence) for each in wanted]
        return Proposal(guesses, num_prefilled, prefill_ns)

    def _look(self, sequence: Decoding) -> Progress:
        """Where the draft stands: guesses that came true are known tokens now, the rest will be written over."""
        progress = self._progress.get(sequence.request_id)
        if progress is None or progress.table is not sequence.block_table:  # preempted: its blocks are others now
            return Progress(sequence.block_table)
        known = _known(sequence)
        for guess in progress.guesses[:-1]:  # the last one was not run
            if progress.num_computed == len(known) - 1 or guess != known[progress.num_computed]:
                break
            progress.num_computed += 1
        progress.guesses = []
        return progress

    def _ready(self, sequence: Decoding) -> bool:
        """Behind by no more than the newest token, and the last guess of a step whose guesses all came true."""
        return sequence.num_tokens - self._progress[sequence.request_id].num_computed <= 2

    def _catch_up(self, wanted: Sequence[Wanted], on_layer: Callable[[int], None] | None) -> int:
        """Compute known tokens, all but the newest, of sequences that are far behind, oldest first; how many."""
        budget, segments = self._prefill_budget, []
        for each in wanted:
            sequence = each.sequence
            progress = self._progress[sequence.request_id]
            if not each.num_tokens or self._ready(sequence) or not budget:
                continue
            start = progress.num_computed
            chunk = _known(sequence)[start:-1][:budget]
            segments.append(_segment(sequence, chunk, start, samples=False))
            progress.num_computed += len(chunk)
            budget -= len(chunk)
        if segments:
            self._runner.run(segments, on_layer)
        return self._prefill_budget - budget

    def _guess(self, wanted: list[Wanted], on_layer: Callable[[int], None] | None) -> None:
        """Token by token, all sequences together."""
        depth = 0
        while active := [each.sequence for each in wanted if each.num_tokens > depth]:
            segments = [segment for sequence in active for segment in self._next(sequence)]
            drawn = [sampled.token for sampled in self._runner.run(segments, on_layer) if sampled is not None]
            for sequence, token in zip(active, drawn, strict=True):
                self._progress[sequence.request_id].guesses.append(token)
            depth += 1

    def _next(self, sequence: Decoding) -> list[Segment]:
        """What is to be run for the next guess: the last guess, or the known tokens that are left, one by one."""
        progress = self._progress[sequence.request_id]
        if progress.guesses:
            start = progress.num_computed + len(progress.guesses) - 1
            return [_segment(sequence, progress.guesses[-1:], start, samples=True)]
        left = _known(sequence)[progress.num_computed :]
        start, progress.num_computed = progress.num_computed, sequence.num_tokens
        return [_segment(sequence, [token], start + i, samples=i == len(left) - 1) for i, token in enumerate(left)]

    def _made(self, sequence: Decoding) -> list[int]:
        return list(self._progress[sequence.request_id].guesses)


def _known(sequence: Decoding) -> list[int]:
    return [*sequence.prompt, *sequence.outputs]


def _segment(sequence: Decoding, tokens: list[int], start: int, samples: bool) -> Segment:
    return Segment(tokens, start, sequence.block_table, sequence.seed, len(sequence.outputs), samples)
