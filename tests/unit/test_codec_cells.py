"""A codec on a pool: scattered blocks arrive in scattered blocks, in every order of the pool, and only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xpyd.kv.cache import KVCache
from xpyd.kv.checksum import checksums
from xpyd.kv.codec.cells import CellCodec
from xpyd.kv.codec.config import CodecConfig
from xpyd.kv.layout import PoolOrder
from xpyd.model.shapes import LatentShape
from xpyd.model.spec import ModelSpec

SPEC = ModelSpec("c", 3, 16, 4, 2, 4, 8, 11, dtype="bfloat16")  # 3 layers, 2 KV heads of 4
LATENT = replace(SPEC, num_kv_heads=1, head_dim=6, latent=LatentShape(6, 4, 2, 4))  # one plane of 8
SPECS = pytest.mark.parametrize("spec", [SPEC, LATENT], ids=["grouped", "latent"])
ORDERS = [PoolOrder(blocks, heads) for blocks in (False, True) for heads in (False, True)]
CONFIGS = [CodecConfig(), CodecConfig("int8", "head"), CodecConfig("fp8", "block"), CodecConfig("zstd")]
SOURCE, DESTINATION = [7, 2, 3, 9], [0, 8, 4, 1]


def filled(order: PoolOrder, seed: int, spec: ModelSpec = SPEC) -> KVCache:
    cache = KVCache(spec, num_blocks=10, block_size=4, order=order)
    cache.pool.copy_(torch.randn(cache.pool.shape, generator=torch.Generator().manual_seed(seed)))
    return cache


def cells(cache: KVCache, table: list[int]) -> np.ndarray:
    """All layers of a table, layer by layer."""
    return np.array([cache.layout.offset(layer, block) for layer in range(3) for block in table])


def last(cache: KVCache, table: list[int]) -> frozenset[int]:
    return frozenset(cells(cache, table[-1:]).tolist())


@SPECS
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_cells_are_the_pool_in_memory_order(order: PoolOrder, spec: ModelSpec) -> None:
    cache = filled(order, 0, spec)
    for layer, block in ((0, 0), (1, 7), (2, 9)):
        cell = cache.layout.offset(layer, block) // cache.layout.block_bytes
        assert torch.equal(cache.cells[cell], cache.pool[layer, block])
    cache.cells[5] = 3.0
    assert int((cache.pool == 3.0).sum()) == cache.layout.block_bytes // 2, "a view, not a copy"


@SPECS
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
def test_tables_move_between_pools_of_any_order(config: CodecConfig, order: PoolOrder, spec: ModelSpec) -> None:
    source, destination = filled(PoolOrder(), 0, spec), filled(order, 1, spec)
    before = source.pool.clone(), destination.pool.clone()
    sender, receiver = CellCodec(config, source.cells), CellCodec(config, destination.cells)
    payload = np.empty(sender.codec.max_encoded_bytes(12), np.uint8)
    nbytes = sender.encode(cells(source, SOURCE), payload, last(source, SOURCE), num_tokens=3)
    receiver.decode(payload[:nbytes], cells(destination, DESTINATION))
    expected = source.pool[:, SOURCE].clone()
    expected[:, -1, :, 3:] = 0  # one token's place of the last block is not the sequence's
    landed = destination.pool[:, DESTINATION]
    if sender.codec.lossy:
        assert (landed.float() - expected.float()).abs().max() < 0.3
        assert not torch.equal(landed, expected)
        assert not landed[:, -1, :, 3:].any()
    else:
        assert torch.equal(landed, expected)
    others = [block for block in range(10) if block not in DESTINATION]
    assert torch.equal(destination.pool[:, others], before[1][:, others])
    assert torch.equal(source.pool, before[0])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
def test_what_an_earlier_owner_left_changes_nothing(config: CodecConfig) -> None:
    payloads = []
    for leftover in (0.0, 1e6):
        cache = filled(PoolOrder(), 0)
        cache.pool[:, SOURCE[-1], :, 3:] = leftover
        sender = CellCodec(config, cache.cells)
        payload = np.zeros(sender.codec.max_encoded_bytes(12), np.uint8)
        sender.encode(cells(cache, SOURCE), payload, last(cache, SOURCE), num_tokens=3)
        payloads.append(payload)
    assert np.array_equal(*payloads)


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.label)
def test_the_source_knows_the_checksums_of_what_lands(config: CodecConfig, order: PoolOrder) -> None:
    """So a lossy hand-off is verified like any other; a flipped bit on the way must show."""
    source, destination = filled(order, 0), filled(order, 1)
    sender, receiver = CellCodec(config, source.cells), CellCodec(config, destination.cells)
    expected = sender.landed_checksums(cells(source, SOURCE), last(source, SOURCE), 3).reshape(3, 4)
    payload = np.empty(sender.codec.max_encoded_bytes(12), np.uint8)
    nbytes = sender.encode(cells(source, SOURCE), payload, last(source, SOURCE), num_tokens=3)
    receiver.decode(payload[:nbytes], cells(destination, DESTINATION))
    assert np.array_equal(checksums(destination.buffer, destination.layout, DESTINATION), expected)
    if config.name != "zstd":  # there a flipped bit may break the frame itself
        payload[nbytes // 2 - 1] ^= 0x40  # the last code of the sixth of twelve cells
        receiver.decode(payload[:nbytes], cells(destination, DESTINATION))
        found = checksums(destination.buffer, destination.layout, DESTINATION)
        assert int((found != expected).sum()) == 1
