"""A stand-in for the model: KV is a pattern of request, layer and block, so that one wrong byte is seen at once.

A decode step compares every block of every request with its pattern; a freed block is overwritten with poison in the
moment that it is freed. So a block that is reused too early, or sent or read after it was freed, fails the trial.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from xpyd.kv.layout import PoolLayout, PoolOrder
from xpyd.model.sampled import Sampled
from xpyd.model.segment import Segment
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Sequence as Request

POISON = 0xDB
WORD_BYTES = 8


class PatternPool:
    """What workers and transports see of a KV cache, without tensors."""

    def __init__(self, num_layers: int, num_blocks: int, block_size: int, block_bytes: int) -> None:
        self.order = PoolOrder()
        self.block_size = block_size
        self.layout = PoolLayout(num_layers, num_blocks, block_bytes)
        self.buffer: NDArray[np.uint8] = np.full(self.layout.nbytes, POISON, np.uint8)
        self._words = self.buffer.view(np.uint64)

    def cell(self, layer: int, block: int) -> NDArray[np.uint64]:
        """The words of one block of one layer."""
        begin = self.layout.offset(layer, block) // WORD_BYTES
        return self._words[begin : begin + self.layout.block_bytes // WORD_BYTES]

    def poison(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            for layer in range(self.layout.num_layers):
                self.cell(layer, block).view(np.uint8)[:] = POISON


class PatternRunner:
    """Writes the pattern of every block that it computes, and checks those that came before. Tokens follow the seed."""

    follows = False  # every step is packed by the engine

    def __init__(self, cache: PatternPool) -> None:
        self.cache = cache
        self.num_checked = 0  # blocks of layers

    def run(self, segments: Sequence[Segment], on_layer: Callable[[int], None] | None = None) -> list[Sampled | None]:
        for layer in range(self.cache.layout.num_layers):
            for segment in segments:
                self._run(layer, segment)
            if on_layer is not None:
                on_layer(layer)
        return [Sampled(token_of(s.seed, s.index), 1.0) if s.samples else None for s in segments]

    def _run(self, layer: int, segment: Segment) -> None:
        size = self.cache.block_size
        for number in range(segment.start // size):  # whole blocks before this segment: by now they must be right
            self._check(layer, segment, number)
        for number in range(segment.start // size, -(-segment.end // size)):
            self.cache.cell(layer, segment.block_table[number])[:] = pattern(segment.seed, layer, number)

    def _check(self, layer: int, segment: Segment, number: int) -> None:
        found, expected = self.cache.cell(layer, segment.block_table[number]), pattern(segment.seed, layer, number)
        self.num_checked += 1
        if not (found == expected).all():
            poisoned = (found.view(np.uint8) == POISON).all()
            raise AssertionError(
                f"seed {segment.seed}, layer {layer}, block {number} (id {segment.block_table[number]}) "
                f"{'is poison' if poisoned else f'holds {found[0]:#x}, not {expected:#x}'}"
            )


def pattern(seed: int, layer: int, number: int) -> int:
    """One word for a block of a request in a layer."""
    return zlib.crc32(f"{seed} {layer} {number}".encode()) << 16 | 1


def token_of(seed: int, index: int) -> int:
    return zlib.crc32(f"token {seed} {index}".encode()) % 1000


def poison_what_is_freed(pool: PatternPool) -> None:
    """Every block that this rank's schedulers free is poison before anyone can be given it."""
    release, unreserve = Scheduler.release, Scheduler.unreserve

    def poisoning_release(self: Scheduler, sequence: Request, reuse: bool = True) -> None:
        if reuse:
            pool.poison(sequence.block_table)
        release(self, sequence, reuse)

    def poisoning_unreserve(self: Scheduler, table: list[int], reuse: bool = True) -> None:
        if reuse:
            pool.poison(table)
        unreserve(self, table, reuse)

    Scheduler.release = poisoning_release  # type: ignore[method-assign]
    Scheduler.unreserve = poisoning_unreserve  # type: ignore[method-assign]
