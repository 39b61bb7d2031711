"""Decode steps recorded once and replayed: on a GPU a small step costs more to launch than to run.

A recording is of one number of rows and one width of block tables. Steps are padded up to the next recorded size by
repeating their last sequence: it writes the same KV to the same slot again, and what it samples is dropped. Attention
reads the padded width, so widths double: at most half of what is read is padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from xpyd.model.batch import Batch, DecodeGroup

Forward = Callable[[Batch], torch.Tensor]  # logits of the sampled rows
Replay = Callable[[], torch.Tensor]


class Recorder(Protocol):
    """How a computation on fixed tensors becomes one that can be run again."""

    def record(self, compute: Replay) -> Replay:
        """``compute`` reads and writes the same tensors every time; the result's numbers hold until the next run."""


class CudaRecorder:
    """CUDA graphs. They share one memory pool: one of them runs at a time, and its result is read before the next."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, compute: Replay) -> Replay:
        compute()  # outside: libraries set themselves up, and buffers grow to their size
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return logits

        return replay


@dataclass(frozen=True)
class Size:
    """Of a recording: rows, and blocks of each row's table."""

    num_rows: int
    num_blocks: int


def size_for(num_rows: int, num_blocks: int) -> Size:
    """The smallest recorded size that holds a step: rows 1, 2, 4, 8, 16, then multiples of 16; blocks powers of two."""
    rows = _power_of_two(num_rows) if num_rows <= 16 else -(-num_rows // 16) * 16
    return Size(rows, _power_of_two(num_blocks))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


class DecodeGraphs:
    """The recordings of one runner. ``forward`` must not read anything but the batch, weights and the pool."""

    def __init__(self, forward: Forward, recorder: Recorder, block_size: int, window: int | None) -> None:
        self._forward = forward
        self._recorder = recorder
        self._block_size, self._window = block_size, window
        self._recorded: dict[Size, tuple[Batch, Replay]] = {}

    def run(self, batch: Batch) -> torch.Tensor:
        """The logits of a batch of one group of decodes that all sample; they hold until the next run."""
        (group,) = batch.decodes
        num_rows, num_blocks = group.tables.shape
        size = size_for(num_rows, num_blocks)
        if size not in self._recorded:
            self._recorded[size] = self._record(size, batch)
        fixed, replay = self._recorded[size]
        _fill(fixed, batch)
        return replay()[:num_rows]

    def _record(self, size: Size, batch: Batch) -> tuple[Batch, Replay]:
        """``batch`` fills the new tensors: recording runs the step, and so writes KV."""
        rows = batch.tokens.new_zeros((4, size.num_rows))
        tables = batch.tokens.new_zeros((size.num_rows, size.num_blocks))
        sampled = torch.arange(size.num_rows, device=rows.device)

        def fixed() -> Batch:
            """Made anew in every recording, as a group derives its mask but once."""
            group = DecodeGroup(0, size.num_rows, tables, rows[3], self._window, self._block_size)
            return Batch(rows[0], rows[1], rows[2], [group], [], sampled)

        held = fixed()
        _fill(held, batch)
        return held, self._recorder.record(lambda: self._forward(fixed()))


def _fill(fixed: Batch, batch: Batch) -> None:
    """Copy a step into the tensors of a recording, its last row repeated to the end."""
    (to,), (group,) = fixed.decodes, batch.decodes
    num_rows, num_blocks = group.tables.shape
    pairs = ((fixed.tokens, batch.tokens), (fixed.positions, batch.positions), (fixed.slots, batch.slots))
    for target, source in (*pairs, (to.ends, group.ends)):
        target[:num_rows] = source
        target[num_rows:] = source[-1]
    to.tables[:num_rows, :num_blocks] = group.tables
    to.tables[num_rows:, :num_blocks] = group.tables[-1]
    to.tables[:, num_blocks:] = 0
