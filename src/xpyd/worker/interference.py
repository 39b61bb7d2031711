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
    per_sequence = -(-(sweep.context_len + sweep.num_gaps + 1) // block_size)
    tables = [list(range(i * per_sequence, (i + 1) * per_sequence)) for i in range(batch)]
    first_free = batch * per_sequence
    chunk_table = list(range(first_free, first_free + -(-chunk // block_size)))
    prompt = [token % runner.spec.vocab_size for token in range(chunk)]
    previous_ns = 0
    for index in range(sweep.num_gaps + 1):
        position = sweep.context_len + index
        segments = [Segment([index % runner.spec.vocab_size], position, table, 0, index, True) for table in tables]
        if chunk:
            segments.append(Segment(prompt, 0, chunk_table, 0, 0, False))
        runner.run(segments)
        now_ns = perf_counter_ns()
        if index:
            yield GapRow(chunk, batch, repeat, index - 1, (now_ns - previous_ns) / NS_PER_S)
        previous_ns = now_ns
