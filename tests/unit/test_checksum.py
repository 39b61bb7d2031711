"""The planted faults of a wire are caught, each with its place: a flipped byte, swapped blocks, a dropped layer."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from xpyd.kv.checksum import checksums, mismatches
from xpyd.kv.layout import PoolLayout

LAYOUT = PoolLayout(num_layers=3, num_blocks=6, block_bytes=64)
SOURCE, DESTINATION = [1, 4, 2], [0, 5, 3]


@pytest.fixture
def pools() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A source pool, and a destination pool that received the three blocks faithfully."""
    source = np.random.default_rng(1).integers(0, 256, LAYOUT.nbytes, dtype=np.uint8)
    destination = np.zeros_like(source)
    for layer in range(LAYOUT.num_layers):
        for a, b in zip(SOURCE, DESTINATION, strict=True):
            block(destination, layer, b)[:] = block(source, layer, a)
    return source, destination


def block(pool: NDArray[np.uint8], layer: int, index: int) -> NDArray[np.uint8]:
    begin = LAYOUT.offset(layer, index)
    return pool[begin : begin + LAYOUT.block_bytes]


def found(pools: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> list[tuple[int, int]]:
    source, destination = pools
    return mismatches(checksums(source, LAYOUT, SOURCE), checksums(destination, LAYOUT, DESTINATION))


def test_a_faithful_transfer_matches(pools: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    assert found(pools) == []


def test_one_flipped_byte(pools: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    block(pools[1], 2, 5)[17] ^= 1
    assert found(pools) == [(2, 1)]


def test_two_swapped_blocks(pools: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    first, second = block(pools[1], 1, 0), block(pools[1], 1, 3)
    first[:], second[:] = second.copy(), first.copy()
    assert found(pools) == [(1, 0), (1, 2)]


def test_one_dropped_layer(pools: tuple[NDArray[np.uint8], NDArray[np.uint8]]) -> None:
    for index in DESTINATION:
        block(pools[1], 0, index)[:] = 0
    assert found(pools) == [(0, 0), (0, 1), (0, 2)]
