"""Recorded decode steps equal plain ones. A fake recorder stands in for CUDA graphs, which need a GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xpyd.model.graphs import Replay, Size, size_for
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.spec import ModelSpec

SPEC = ModelSpec("micro", 2, 64, 4, 2, 16, 128, 256, sliding_window=9)
BLOCK_SIZE, NUM_BLOCKS = 4, 64


class Again:
    """Runs the computation again, on the same tensors, into the tensor of the first result, as a graph does."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def record(self, compute: Replay) -> Replay:
        self.num_recorded += 1
        held = compute().clone()

        def replay() -> torch.Tensor:
            return held.copy_(compute())

        return replay


def decodes(lens: list[int]) -> list[Segment]:
    """One token behind each of ``lens`` cached ones; every sequence has eight blocks of its own."""
    return [Segment([7 * i + n], n, list(range(8 * i, 8 * i + 8)), 0, 1, True) for i, n in enumerate(lens)]


def runner(recorder: Again | None) -> ModelRunner:
    made = ModelRunner(SPEC, NUM_BLOCKS, BLOCK_SIZE, recorder=recorder)
    made.cache.pool.normal_(generator=torch.Generator().manual_seed(3))
    return made


def test_replayed_steps_equal_plain_ones_and_leave_the_same_cache() -> None:
    recorder = Again()
    plain, replayed = runner(None), runner(recorder)
    for lens in ([5], [11, 3, 30], [12, 4, 31], [9, 9, 9, 9, 9], [2], [30, 30, 30]):
        torch.testing.assert_close(replayed.logits(decodes(lens)), plain.logits(decodes(lens)))
        torch.testing.assert_close(replayed.cache.pool, plain.cache.pool)
    assert recorder.num_recorded == len({(1, 2), (4, 8), (8, 4), (1, 1)})


def test_a_step_with_a_chunk_or_without_a_sample_is_not_recorded() -> None:
    recorder = Again()
    replayed = runner(recorder)
    chunk = Segment([1, 2, 3], 0, list(range(40, 48)), 0, 0, True)
    silent = Segment([1], 3, list(range(48, 56)), 0, 1, False)
    replayed.run([*decodes([5]), chunk])
    replayed.run([*decodes([5]), silent])
    assert recorder.num_recorded == 0


def test_layers_are_told_of_after_a_replay() -> None:
    told: list[int] = []
    replayed = runner(Again())
    on_layer: Callable[[int], None] = told.append
    replayed.run(decodes([5]), on_layer)
    assert told == [0, 1]


@given(num_rows=st.integers(1, 300), num_blocks=st.integers(1, 5000))
def test_sizes_hold_their_step_and_waste_at_most_half(num_rows: int, num_blocks: int) -> None:
    size = size_for(num_rows, num_blocks)
    assert num_rows <= size.num_rows < 2 * num_rows + 1
    assert num_blocks <= size.num_blocks < 2 * num_blocks
    assert size_for(size.num_rows, size.num_blocks) == size


def test_sizes_by_hand() -> None:
    assert [size_for(n, 1).num_rows for n in (1, 3, 8, 9, 16, 17, 32, 33)] == [1, 4, 8, 16, 16, 32, 32, 48]
    assert size_for(5, 65) == Size(8, 128)


def test_every_tensor_of_a_recorded_step_is_on_the_device() -> None:
    """The meta device computes nothing, but refuses to mix with tensors that were left on the CPU."""
    made = ModelRunner(SPEC, NUM_BLOCKS, BLOCK_SIZE, device="meta", recorder=Again())
    assert made.logits(decodes([5, 30, 11])).shape == (3, SPEC.vocab_size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_cuda_graphs_equal_plain_steps() -> None:
    replayed = ModelRunner(SPEC, NUM_BLOCKS, BLOCK_SIZE, device="cuda")
    eager = ModelRunner(SPEC, NUM_BLOCKS, BLOCK_SIZE, device="cuda")
    eager._graphs = None
    for each in (replayed, eager):
        each.cache.pool.copy_(runner(None).cache.pool)
    for lens in ([5], [11, 3, 30], [12, 4, 31]):
        torch.testing.assert_close(replayed.logits(decodes(lens)), eager.logits(decodes(lens)))
