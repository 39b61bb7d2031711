"""A step in C is the step that torch makes: the same logits, the same KV, whatever runs beside a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from xpyd import native
from xpyd.kv.layout import PoolOrder
from xpyd.model import instance
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.sampling import sample
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.shapes import ExpertsShape, RopeScaling
from xpyd.model.spec import ModelSpec
from xpyd.model.weights import Weights, load_weights
from xpyd.placement import Division

# Widths that are no multiples of what a product computes at once; three query heads share a KV head.
PLAIN = ModelSpec("x", 2, 72, 6, 2, 32, 88, 67)
YARN = RopeScaling("yarn", 4.0, original_max_position_embeddings=16)
SPECS = {
    "grouped": PLAIN,
    "own KV heads": replace(PLAIN, num_heads=5, num_kv_heads=5, head_dim=16),
    "norms and biases": replace(PLAIN, qk_norm=True, qkv_bias=True, head_dim=48, tie_word_embeddings=True),
    "window": replace(PLAIN, sliding_window=7, head_dim=64),
    "stretched": replace(PLAIN, num_heads=3, num_kv_heads=1, head_dim=128, rope_scaling=YARN),
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
BLOCK_SIZE = 5


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if native.multiplying() is None:
        pytest.skip("src/xpyd/native is not compiled, or this processor's vectors are too short")


@contextmanager
def without_kernels() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "kernels", lambda: None)
        yield


@torch.inference_mode()
def weights_of(spec: ModelSpec) -> Weights:
    """Norms of checkpoints are not all one."""
    weights = load_weights(spec)
    generator = torch.Generator().manual_seed(7)
    norms = [weights.norm, *(norm for layer in weights.layers for norm in (layer.input_norm, layer.post_norm))]
    for layer in weights.layers:
        norms += [norm for norm in (layer.attention.q_norm, layer.attention.k_norm) if norm is not None]
    for norm in norms:
        norm.copy_(1 + 0.3 * torch.randn(norm.shape, generator=generator))
    return weights


def runner_of(spec: ModelSpec, order: PoolOrder | None = None, num_blocks: int = 120) -> ModelRunner:
    return ModelRunner(spec, num_blocks, BLOCK_SIZE, order=order, weights=weights_of(spec))


def tables(num: int) -> list[list[int]]:
    """Of ``num`` sequences of up to 100 tokens, over blocks anywhere in the pool."""
    blocks = torch.randperm(120, generator=torch.Generator().manual_seed(3)).tolist()
    return [blocks[20 * i : 20 * (i + 1)] for i in range(num)]


def steps(vocab: int) -> list[list[Segment]]:
    """Prompts of 1 to 70 tokens, whole and in chunks; decodes beside them and alone; one step that samples nothing."""
    a, b, c, d = tables(4)
    words = [(7 * i + 3) % vocab for i in range(100)]
    return [
        [Segment(words[:70], 0, a, 0, 0, True), Segment(words[:1], 0, b, 0, 0, True)],
        [Segment(words[:33], 0, c, 0, 0, False)],
        [
            Segment([5], 70, a, 0, 1, True),
            Segment(words[33:42], 33, c, 0, 0, True),
            Segment([6], 1, b, 0, 1, False),
            Segment(words[:2], 0, d, 0, 0, True),
        ],
        [Segment([8], 71, a, 0, 2, True), Segment([9], 2, d, 0, 1, True), Segment([1], 42, c, 0, 1, True)],
    ]


@pytest.mark.parametrize("name", SPECS)
def test_steps_are_those_of_torch(name: str) -> None:
    spec = SPECS[name]
    mine = runner_of(spec)
    with without_kernels():
        torchs = runner_of(spec)
    assert mine._compiled is not None
    assert torchs._compiled is None
    for segments in steps(spec.vocab_size):
        found = mine.logits(segments)
        with without_kernels():
            torch.testing.assert_close(found, torchs.logits(segments), **CLOSE)
    torch.testing.assert_close(mine.cache.pool, torchs.cache.pool, **CLOSE)
    assert int(mine.cache.pool.count_nonzero()) > 100 * spec.head_dim


@pytest.mark.parametrize("order", [PoolOrder(True, False), PoolOrder(False, True), PoolOrder(True, True)])
def test_any_order_of_the_pool_will_do(order: PoolOrder) -> None:
    mine, other = runner_of(PLAIN), runner_of(PLAIN, order)
    for segments in steps(PLAIN.vocab_size):
        assert torch.equal(mine.logits(segments), other.logits(segments))
    assert torch.equal(mine.cache.pool, other.cache.pool)


def test_a_sequence_gets_the_same_numbers_alone_and_in_a_batch() -> None:
    together, alone = runner_of(PLAIN), runner_of(PLAIN)
    for segments in steps(PLAIN.vocab_size):
        found = iter(together.logits(segments))
        for segment in segments:
            rows = alone.logits([segment])
            assert not segment.samples or torch.equal(rows[0], next(found))


def test_layers_are_told_in_order_and_a_step_that_one_of_them_ends_leaves_no_trace() -> None:
    runner, told = runner_of(PLAIN), []
    segments = steps(PLAIN.vocab_size)[0]
    expected = runner.logits(segments, told.append)
    assert told == [0, 1]

    def stop(layer: int) -> None:
        assert int(runner.cache.pool[layer].count_nonzero()), "KV of the layer is not in the pool"
        raise InterruptedError

    with pytest.raises(InterruptedError):
        runner.logits(segments, stop)
    assert torch.equal(runner.logits(segments), expected)


def test_more_threads_do_not_change_a_number() -> None:
    one = runner_of(PLAIN)
    two = ModelRunner(PLAIN, 120, BLOCK_SIZE, num_threads=2, weights=weights_of(PLAIN))
    torch.set_num_threads(1)
    for segments in steps(PLAIN.vocab_size):
        assert torch.equal(one.logits(segments), two.logits(segments))


def test_what_c_does_not_know_is_left_to_torch() -> None:
    experts = ExpertsShape(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    for spec in (replace(PLAIN, dtype="bfloat16"), replace(PLAIN, head_dim=24), replace(PLAIN, experts=experts)):
        assert ModelRunner(spec, 8, BLOCK_SIZE)._compiled is None


@pytest.mark.parametrize("num_columns", [2, 16, 67])
def test_the_largest_logit_and_its_margin_are_those_of_topk(num_columns: int) -> None:
    logits = torch.randn(9, num_columns, generator=torch.Generator().manual_seed(1)) - 3
    logits[0] = -2.5  # of equals the first, by nothing
    found, seeds = sample(logits, SamplingConfig(), [(0, 0)] * 9), [(0, 0)] * 9
    with without_kernels():
        expected = sample(logits, SamplingConfig(), seeds)
    assert found[0].token == 0
    assert [each.token for each in found[1:]] == [each.token for each in expected[1:]]
    assert [each.margin for each in found] == pytest.approx([each.margin for each in expected])


def test_an_instance_of_one_rank_can_be_held_against_one_of_several() -> None:
    """Whose steps torch runs: an arm must not be the faster for that."""
    torchs = instance.runner_of(None, Division(), None, PLAIN, 8, BLOCK_SIZE, in_c=False)
    assert torchs._compiled is None
    assert instance.runner_of(None, Division(), None, PLAIN, 8, BLOCK_SIZE, in_c=True)._compiled is not None


def test_a_table_that_changes_between_steps_is_read_anew() -> None:
    """As long as before, and the same list: what a sequence gave back and took again may be another block."""
    mine, fresh = runner_of(PLAIN), runner_of(PLAIN)
    words, table = [(7 * i + 3) % 67 for i in range(12)], [4, 9, 2]
    other = [Segment(words[:7], 0, [30, 31], 0, 0, True), Segment([5], 7, [30, 31], 0, 1, True)]
    for runner in (mine, fresh):
        runner.run([Segment(words, 0, table, 0, 0, True)])
        runner.run([Segment(words, 0, [4, 9, 7], 0, 0, True)])
        runner.run([other[0]])
    longer = [Segment([1, 5], 12, [4, 9, 7], 0, 1, True), other[1]]
    expected = fresh.logits(longer)
    mine.run([Segment([1], 12, table, 0, 1, True), other[1]])
    table[2] = 7
    step = [Segment([1], 12, table, 0, 1, True), other[1]]
    assert torch.equal(mine.logits(step), fresh.logits(step))
    wider = [Segment([2], 13, [4, 9, 7, 50, 51, 52], 0, 2, True), step[1], Segment([3], 7, [30, 31], 0, 1, True)]
    assert torch.equal(mine.logits(wider), fresh.logits(wider))
    assert mine.run(step) == fresh.run(step)
    fewer = [Segment([1], 12, table, 0, 1, False), step[1]]
    whole = mine.logits(step)
    assert torch.equal(mine.logits([Segment([1], 12, [4, 9, 7, *range(60, 70)], 0, 1, True), step[1]]), whole)
    assert torch.equal(mine.logits(fewer), whole[1:])
    assert torch.equal(mine.logits(longer), expected)
