"""A prompt divided among ranks is computed as one rank computes it: logits, and the KV in every rank's pool.

Ranks are threads here, as in test_model_parallel; tests/mpi has the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_model_parallel import MICRO, PROMPTS, TABLES, VARIANTS, Threads
from xpyd.model.context import ContextRunner, own_segments, pieces
from xpyd.model.runner import ModelRunner, Segment
from xpyd.placement import Split

SPLITS = st.sampled_from(["zigzag", "contiguous"])
WIDTHS = st.sampled_from([2, 4, 8])


class ThreadGatherer:
    def __init__(self, shared: Threads, rank: int) -> None:
        self.rank, self.width = rank, shared.barrier.parties
        self.num_gathers = 0
        self._shared = shared

    def gather(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        assert len(rows) == counts[self.rank]
        self.num_gathers += 1
        return torch.cat(self._shared.exchange(self.rank, rows))


def on_ranks(
    width: int, split: Split, spec: Any, work: Callable[[ModelRunner], Any]
) -> list[tuple[ContextRunner, Any]]:
    """``work(runner)`` on every rank at once: each one's runner and what it got."""
    shared = Threads(width)

    def rank(number: int) -> tuple[ContextRunner, Any]:
        runner = ContextRunner(ThreadGatherer(shared, number), split, spec, 64, 4)
        try:
            return runner, work(runner)
        except BaseException:
            shared.barrier.abort()  # or the others wait for their timeout
            raise

    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(rank, range(width)))


def steps(runner: ModelRunner) -> torch.Tensor:
    """A whole prompt beside the first chunk of another, then its rest beside a short prompt and a single token."""
    runner.run([Segment(PROMPTS[0], 0, TABLES[0], 0, 0, True), Segment(PROMPTS[1][:14], 0, TABLES[1], 0, 0, False)])
    rest = Segment(PROMPTS[1][14:], 14, TABLES[1], 0, 0, True)
    return runner.logits([rest, Segment([8, 9, 7], 0, [30], 0, 0, True), Segment([3], 19, TABLES[0], 0, 1, True)])


@pytest.mark.parametrize("variant", [*VARIANTS, "windowed"])
@pytest.mark.parametrize(("width", "split"), [(2, "zigzag"), (4, "zigzag"), (8, "zigzag"), (4, "contiguous")])
def test_logits_and_kv_are_those_of_one_rank(width: int, split: Split, variant: str) -> None:
    spec = replace(MICRO, **VARIANTS.get(variant, {"sliding_window": 9}))
    alone = ModelRunner(spec, 64, 4)
    expected = steps(alone)
    ranks = on_ranks(width, split, spec, steps)
    torch.testing.assert_close(ranks[0][1], expected, rtol=1e-5, atol=1e-5)
    for runner, _ in ranks:
        torch.testing.assert_close(runner.cache.pool, alone.cache.pool, rtol=1e-5, atol=1e-5)


def test_tokens_are_drawn_by_the_leader_alone() -> None:
    step = [Segment(PROMPTS[0], 0, TABLES[0], 0, 0, True), Segment(PROMPTS[1], 0, TABLES[1], 0, 0, False)]
    (expected, _) = ModelRunner(MICRO, 64, 4).run(step)
    assert expected is not None
    (leader, nothing), *followers = (drawn for _, drawn in on_ranks(2, "zigzag", MICRO, lambda r: r.run(step)))
    assert leader.token == expected.token
    assert nothing is None
    assert followers == [[None, None]]


def test_a_short_step_is_not_divided() -> None:
    """Three tokens for four pieces: both ranks run them, nothing is gathered; four are divided, once in each layer."""
    for num_tokens, num_gathers in ((3, 0), (4, MICRO.num_layers)):
        segment = Segment(PROMPTS[0][:num_tokens], 0, TABLES[0], 0, 0, True)
        expected = ModelRunner(MICRO, 64, 4).logits([segment])
        (leader, found), _ = on_ranks(2, "zigzag", MICRO, lambda runner, step=segment: runner.logits([step]))
        assert isinstance(leader.gatherer, ThreadGatherer)
        assert leader.gatherer.num_gathers == num_gathers
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(num=st.integers(0, 200), width=WIDTHS, split=SPLITS)
def test_every_token_is_computed_once_and_shares_are_equal(num: int, width: int, split: Split) -> None:
    ranks = [pieces(num, rank, width, split) for rank in range(width)]
    assert sorted(token for own in ranks for piece in own for token in piece) == list(range(num))
    shares = [sum(len(piece) for piece in own) for own in ranks]
    assert max(shares) - min(shares) <= 2, "of two pieces, each a token more or less"
    if num:
        assert ranks[0][-1].stop == num, "the leader has the last token, whose logits are wanted"


@given(num=st.integers(64, 400), width=WIDTHS)
def test_the_zigzag_balances_the_causal_mask(num: int, width: int) -> None:
    def pairs(rank: int, split: Split) -> int:
        return sum(token + 1 for piece in pieces(num, rank, width, split) for token in piece)

    mean = num * (num + 1) / 2 / width
    assert max(pairs(rank, "zigzag") for rank in range(width)) <= mean + 2 * num, "pieces differ by a token each"
    assert pairs(0, "contiguous") >= mean * (2 - 1 / width) - 2 * num


def test_pieces_by_hand() -> None:
    assert [pieces(8, rank, 2, "zigzag") for rank in (0, 1)] == [[range(2), range(6, 8)], [range(2, 6)]]
    assert [pieces(8, rank, 2, "contiguous") for rank in (0, 1)] == [[range(4, 8)], [range(4)]]


def test_single_tokens_behind_a_context_come_first() -> None:
    """They run in the batched decode path, whose rows lie in front."""
    segments = [Segment([1, 2, 3, 4], 0, [0], 0, 0, True), Segment([5, 6, 7, 8], 4, [1, 2], 0, 0, True)]
    mine = own_segments(segments, 0, 2, "zigzag")
    assert [(number, part.start, part.tokens, part.samples) for number, part in mine] == [
        (0, 3, [4], True),
        (1, 4, [5], False),
        (1, 7, [8], True),
        (0, 0, [1], False),
    ]
