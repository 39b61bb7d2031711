"""Guess, verify, accept: several tokens of a sequence from one step of the model, the same ones as without guessing.

The guesses of a sequence run behind its newest token as decodes of their own, each seeing the tokens before it. The
model's greedy choice at each place is the next token for as long as the guess that follows says the same; the first
choice that differs is the last token of the step. KV of wrong guesses lies behind the sequence's end: the next step
writes over it, and it is never handed off, as only prompts are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from xpyd.model.runner import ModelRunner
from xpyd.model.sampled import Sampled
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.records import SpeculationRow
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Chunk
from xpyd.units import NS_PER_S
from xpyd.worker.drafts import Draft, ModelDraft, NgramDraft, Proposal, Wanted

NOTHING = Proposal([])


def agreed(choices: list[Sampled], guesses: list[int]) -> list[Sampled]:
    """The tokens that a step yields: ``choices`` up to, and with, the first that the guess behind it does not repeat.

    ``choices[i]`` is the model's, seeing the first i of ``guesses``; [] where the step yields none.
    """
    num_right = 0
    while num_right < len(guesses) and guesses[num_right] == choices[num_right].token:
        num_right += 1
    return choices[: num_right + 1]


@dataclass(frozen=True)
class Account:
    """What the guessing of one step took, and brought."""

    num_decode_seqs: int = 0
    num_guessed: int = 0
    draft_ns: int = 0
    proposal: Proposal = NOTHING


class Speculator:
    """One instance's guessing for one block."""

    def __init__(self, draft: Draft, num_tokens: int, scheduler: Scheduler) -> None:
        self._draft = draft
        self._num_tokens = num_tokens
        self._scheduler = scheduler
        self._account = Account()
        self._num_accepted = 0

    def guess(self, decodes: Sequence[Chunk], between: Callable[[], None] | None = None) -> Mapping[int, list[int]]:
        """Guesses for the sequences that decode in a step, by request, with blocks for them; fewer where few are free.

        ``between`` is called between the layers of the draft.
        """
        if not decodes:
            self._account = Account()
            return {}
        begin_ns = perf_counter_ns()
        wanted = [
            Wanted(chunk.sequence, self._scheduler.grow_ahead(chunk.sequence, self._num_tokens)) for chunk in decodes
        ]
        proposal = self._draft.propose(wanted, None if between is None else lambda layer: between())
        num_guessed = sum(len(guesses) for guesses in proposal.guesses)
        self._account = Account(len(decodes), num_guessed, perf_counter_ns() - begin_ns, proposal)
        pairs = zip(decodes, proposal.guesses, strict=True)
        return {chunk.sequence.request_id: guesses for chunk, guesses in pairs}

    def count(self, num_accepted: int) -> None:
        """Of the guesses of this step so many came true."""
        self._num_accepted = num_accepted

    def row(self, block: int, rank: int, begin_ns: int) -> SpeculationRow | None:
        """The last step's; None where nothing decoded in it."""
        account = self._account
        if not account.num_decode_seqs:
            return None
        return SpeculationRow(
            block=block,
            rank=rank,
            begin_ns=begin_ns,
            num_decode_seqs=account.num_decode_seqs,
            num_guessed_tokens=account.num_guessed,
            num_accepted_tokens=self._num_accepted,
            draft_s=account.draft_ns / NS_PER_S,
            draft_prefill_s=account.proposal.prefill_ns / NS_PER_S,
            num_draft_prefill_tokens=account.proposal.num_prefill_tokens,
        )


def draft_runner(config: SpeculationConfig, target: ModelRunner, num_threads: int) -> ModelRunner | None:
    """The draft's weights, and a pool of as many blocks as the model's; None for a draft without a model."""
    if config.num_layers is not None:
        return target.shallow(config.num_layers)
    if config.model is None:
        return None
    layout, size = target.cache.layout, target.cache.block_size
    return ModelRunner(config.model, layout.num_blocks, size, num_threads=num_threads)


def build_speculator(config: SpeculationConfig, runner: ModelRunner | None, scheduler: Scheduler) -> Speculator | None:
    """For one block; ``runner`` is the draft's where it has one."""
    if config.num_tokens is None:
        return None
    if runner is not None:
        draft: Draft = ModelDraft(runner, scheduler.config.max_num_batched_tokens)
    else:
        assert config.max_ngram is not None
        draft = NgramDraft(config.max_ngram)
    return Speculator(draft, config.num_tokens, scheduler)
