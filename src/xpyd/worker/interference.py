"""Interference without a network: the gaps of a fixed decode batch, alone and beside prefill chunks of each size.

Each gap is one real engine step on a colocated worker, timed from commit to commit. Sizes alternate in a fresh order
every repeat, so that a drift of the machine falls on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter_ns

import numpy as np

from xpyd.model.runner import ModelRunner, Segment
from xpyd.records import GapRow
from xpyd.units import NS_PER_S
from xpyd.worker.sweeps import InterferenceSweep


def measure_gaps(runner: ModelRunner, block_size: int, sweep: InterferenceSweep, seed: int) -> Iterator[GapRow]:
    """Every gap of every point, as it is measured. The first step of each point is warm-up and not kept."""
    generator = np.random.default_rng(seed)
    points = [(size, batch) for batch in sweep.num_decode_seqs for size in (0, *sweep.chunk_tokens)]
    for repeat in range(sweep.num_repeats):
        for which in generator.permutation(len(points)):
            chunk, batch = points[which]
            yield from _point(runner, block_size, sweep, chunk, batch, repeat)


def _point(
    runner: ModelRunner, block_size: int, sweep: InterferenceSweep, chunk: int, batch: int, repeat: int
) -> Iterator[GapRow]:
    reach = sweep.context_len + sweep.num_gaps + 1
    first_free = batch * -(-reach // block_size)
    chunk_table = list(range(first_free, first_free + -(-chunk // block_size)))
    vocab_size = runner.spec.vocab_size
    prompt = [token % vocab_size for token in range(chunk)]
    previous_ns = 0
    for index in range(sweep.num_gaps + 1):
        segments = decode_batch(vocab_size, block_size, batch, sweep.context_len + index, reach)
        if chunk:
            segments.append(Segment(prompt, 0, chunk_table, 0, 0, False))
        runner.run(segments)
        now_ns = perf_counter_ns()
        if index:
            yield GapRow(chunk, batch, repeat, index - 1, (now_ns - previous_ns) / NS_PER_S)
        previous_ns = now_ns


def decode_batch(
    vocab_size: int, block_size: int, num_seqs: int, position: int, reach: int, first_block: int = 0
) -> list[Segment]:
    """One decode step of ``num_seqs`` sequences at ``position``, each in blocks of its own for ``reach`` tokens."""
    width = -(-reach // block_size)
    firsts = [first_block + i * width for i in range(num_seqs)]
    return [
        Segment([position % vocab_size], position, list(range(first, first + width)), 0, position, True)
        for first in firsts
    ]
