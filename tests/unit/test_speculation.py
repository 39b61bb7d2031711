"""Speculative decoding changes no token, whatever the draft guesses: right, wrong, or sometimes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.unit.test_model_runner import MICRO
from xpyd.model.runner import ModelRunner
from xpyd.model.sampled import Sampled
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.model.tensors import Linear
from xpyd.model.weights import load_weights
from xpyd.records import SpeculationRow
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.prefill_first import PrefillFirstScheduler
from xpyd.scheduler.sequence import Sequence
from xpyd.worker.drafts import ModelDraft, NgramDraft, Wanted
from xpyd.worker.engine import Engine
from xpyd.worker.speculation import Speculator, agreed, build_speculator, draft_runner

PROMPTS = [[(13 * i + 5 * j) % 97 for i in range(length)] for j, length in enumerate((19, 4, 33))]
OUTPUTS = [24, 9, 17]
K = 3


@dataclass
class Played:
    tokens: dict[int, list[int]] = field(default_factory=dict)
    rows: list[SpeculationRow] = field(default_factory=list)
    num_steps: int = 0
    num_preempted: int = 0

    @property
    def acceptance(self) -> float:
        return sum(row.num_accepted_tokens for row in self.rows) / sum(row.num_guessed_tokens for row in self.rows)


def play(draft: SpeculationConfig | ModelRunner | None, scheduler: Scheduler) -> Played:
    """Three requests on one engine, from prompts to last tokens; ``draft``: a configured one, or a model."""
    runner, played = ModelRunner(MICRO, scheduler.config.num_kv_blocks, scheduler.config.block_size), Played()
    speculator = None
    if isinstance(draft, SpeculationConfig):
        speculator = build_speculator(draft, draft_runner(draft, runner, 1), scheduler)
    elif draft is not None:
        speculator = Speculator(ModelDraft(draft, scheduler.config.max_num_batched_tokens), K, scheduler)
    engine = Engine(runner, scheduler, speculator)
    for number, (prompt, num_outputs) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        scheduler.add(Sequence(number, prompt, num_outputs))
    while len(played.tokens) < len(PROMPTS):
        plan = scheduler.schedule()
        outputs = engine.run(plan)
        row = speculator.row(0, 1, played.num_steps) if speculator is not None else None
        played.rows += [row] if row is not None else []
        played.num_steps += 1
        played.num_preempted += len(plan.preempted)
        for sequence in engine.commit(plan, outputs):
            played.tokens[sequence.request_id] = list(sequence.outputs)
            scheduler.release(sequence)
    assert scheduler.num_free_blocks == scheduler.total_blocks
    return played


def chunked(num_blocks: int = 64, budget: int = 16) -> Scheduler:
    return ChunkedScheduler(SchedulerConfig("chunked", 8, budget, 4, num_blocks))


def itself(noise: float = 0.0) -> ModelRunner:
    """The model as its own draft, its head perturbed."""
    weights = load_weights(MICRO)
    head = weights.head.matrix
    head = head + noise * torch.randn(head.shape, generator=torch.Generator().manual_seed(1))
    return ModelRunner(MICRO, 64, 4, weights=replace(weights, head=Linear(head)))


EXPECTED = play(None, chunked())


def test_the_model_itself_guesses_right_and_needs_fewer_steps() -> None:
    found = play(itself(), chunked())
    assert found.tokens == EXPECTED.tokens
    assert found.acceptance == 1.0
    assert found.num_steps < EXPECTED.num_steps / 2
    assert max(row.num_guessed_tokens / row.num_decode_seqs for row in found.rows) == K


def test_an_unrelated_draft_guesses_wrong_and_harms_nothing() -> None:
    found = play(SpeculationConfig("model", K, model=replace(MICRO, num_layers=1, seed=7)), chunked())
    assert found.tokens == EXPECTED.tokens
    assert found.acceptance < 0.1
    guessed = sum(row.num_guessed_tokens for row in found.rows)
    assert guessed > sum(OUTPUTS), "it went on guessing"


def test_a_perturbed_copy_guesses_right_now_and_then() -> None:
    found = play(itself(noise=0.1), chunked())
    assert found.tokens == EXPECTED.tokens
    assert 0.2 < found.acceptance < 0.95


@pytest.mark.parametrize(
    "draft", [SpeculationConfig("layers", K, num_layers=1), SpeculationConfig("ngram", K, max_ngram=2)]
)
def test_other_drafts_change_no_token(draft: SpeculationConfig) -> None:
    assert play(draft, chunked()).tokens == EXPECTED.tokens
    assert play(draft, PrefillFirstScheduler(SchedulerConfig("prefill_first", 8, 40, 4, 64))).tokens == EXPECTED.tokens


def test_the_draft_computes_each_prompt_itself_and_once() -> None:
    """No draft KV exists when decoding begins."""
    found = play(itself(), chunked(budget=64))
    assert sum(row.num_draft_prefill_tokens for row in found.rows) == sum(len(prompt) for prompt in PROMPTS)
    assert all(row.draft_prefill_s <= row.draft_s for row in found.rows)
    assert sum(row.draft_prefill_s > 0 for row in found.rows) == sum(
        row.num_draft_prefill_tokens > 0 for row in found.rows
    )


def test_a_draft_that_catches_up_in_chunks_holds_nobody_up() -> None:
    found = play(itself(), chunked(budget=16))
    assert found.tokens == EXPECTED.tokens
    assert next(row.num_draft_prefill_tokens for row in found.rows if row.num_draft_prefill_tokens) == 16
    assert all(row.num_draft_prefill_tokens <= 16 for row in found.rows)
    assert any(row.num_draft_prefill_tokens and not row.num_guessed_tokens for row in found.rows)


def test_a_full_pool_takes_blocks_from_guesses_not_from_sequences() -> None:
    """24 blocks of 4 hold the three requests' ends only just: guesses never cause a preemption."""
    plain, guessing = play(None, chunked(num_blocks=24)), play(itself(), chunked(num_blocks=24))
    assert plain.num_preempted == 0
    assert guessing.num_preempted == 0
    assert guessing.tokens == EXPECTED.tokens


def test_preempted_sequences_are_guessed_for_anew() -> None:
    plain, guessing = play(None, chunked(num_blocks=18)), play(itself(), chunked(num_blocks=18))
    assert plain.num_preempted > 0
    assert guessing.num_preempted > 0
    assert guessing.tokens == EXPECTED.tokens
    assert guessing.acceptance == 1.0, "its blocks are others now, and so its draft KV was computed again"


def test_other_blocks_hold_no_draft_kv() -> None:
    """A sequence may be preempted and come back without a step of decodes between."""
    draft = ModelDraft(itself(), prefill_budget=64)
    sequence = Sequence(0, PROMPTS[0], 9, [5], len(PROMPTS[0]), [0, 1, 2, 3, 4, 5])
    assert draft.propose([Wanted(sequence, 1)], None).num_prefill_tokens == len(PROMPTS[0])
    sequence.outputs.append(7)
    assert draft.propose([Wanted(sequence, 1)], None).num_prefill_tokens == 0
    sequence.outputs.append(9)
    sequence.block_table = [10, 11, 12, 13, 14, 15]
    assert draft.propose([Wanted(sequence, 1)], None).num_prefill_tokens == len(PROMPTS[0]) + 2


def test_what_a_step_yields() -> None:
    choices = [Sampled(token, 1.0) for token in (5, 6, 7)]
    assert [s.token for s in agreed(choices, [5, 6])] == [5, 6, 7]
    assert [s.token for s in agreed(choices, [5, 9])] == [5, 6]
    assert [s.token for s in agreed(choices, [9, 6])] == [5], "what follows a wrong guess is worth nothing"
    assert agreed([], []) == []


def test_n_gram_takes_the_longest_match_and_the_latest() -> None:
    draft = NgramDraft(max_ngram=2)

    def guess(tokens: list[int], num_tokens: int = 2) -> list[int]:
        (found,) = draft.propose([Wanted(Sequence(0, tokens, 9), num_tokens)], None).guesses
        return found

    assert guess([1, 2, 3, 9, 2, 4, 4, 1, 2]) == [3, 9], "1 2 stood before, and goes before the later 2 alone"
    assert guess([1, 2, 3, 1, 2, 5, 1, 2]) == [5, 1]
    assert guess([1, 2, 3, 4]) == []
    assert guess([7, 7]) == [7]
    assert guess([1, 256, 0x01000000, 5, 1]) == [256, 0x01000000], "bytes that match across tokens are no match"
    assert guess([1, 2, 3, 1], 0) == []


def test_room_for_guesses() -> None:
    """Up to the last token but one, and never the block that another sequence grows into."""
    scheduler = chunked(num_blocks=4)
    sequence, other = Sequence(0, [1] * 6, 4), Sequence(1, [1] * 3, 9)
    for each in (sequence, other):
        scheduler.add(each)
    scheduler.commit(scheduler.schedule(), {0: 1, 1: 1})
    scheduler.schedule()
    assert scheduler.num_free_blocks == 1
    assert scheduler.grow_ahead(sequence, 5) == 1, "7 known tokens in two blocks of 4: one slot is left"
    assert scheduler.grow_ahead(other, 5) == 0, "its one block is full, and the free one is kept"
    assert scheduler.num_free_blocks == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"draft": "none", "num_tokens": 3}, "num_tokens=3 with draft=none, which ignores it"),
        ({"draft": "ngram", "num_tokens": 3}, "max_ngram is not set with draft=ngram"),
        ({"draft": "ngram", "num_tokens": 3, "max_ngram": 2, "model": MICRO}, "model=micro with draft=ngram"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SpeculationConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "sampling", "several", "named"),
    [
        (SpeculationConfig("ngram", 3, 2), SamplingConfig(0.5), False, "draft=ngram with sampling.temperature=0.5"),
        (SpeculationConfig("layers", 3, num_layers=2), SamplingConfig(), False, "num_layers=2: model micro has 2"),
        (SpeculationConfig("layers", 3, num_layers=1), SamplingConfig(), True, "instances of several ranks"),
        (SpeculationConfig("model", 3, model=replace(MICRO, vocab_size=98)), SamplingConfig(), False, "vocab_size=98"),
    ],
)
def test_a_draft_that_does_not_fit_is_refused(
    config: SpeculationConfig, sampling: SamplingConfig, several: bool, named: str
) -> None:
    SpeculationConfig().check(MICRO, sampling, several)
    with pytest.raises(ValueError, match=named):
        config.check(MICRO, sampling, several)
