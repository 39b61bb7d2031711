"""The pool as tensor and as bytes: one memory; blocks written through slots come back through tables, in any order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xpyd.kv.cache import DTYPES, KVCache
from xpyd.kv.layout import PoolOrder
from xpyd.model.shapes import LatentShape
from xpyd.model.spec import Dtype, ModelSpec

ORDERS = [PoolOrder(blocks, heads) for blocks in (False, True) for heads in (False, True)]
every_order = pytest.mark.parametrize("order", ORDERS, ids=str)


def cache(dtype: Dtype = "float32", order: PoolOrder | None = None, staging_bytes: int = 0) -> KVCache:
    spec = ModelSpec("c", 3, 16, 4, 2, 4, 8, 11, dtype=dtype)  # 3 layers, 2 KV heads of 4
    return KVCache(spec, num_blocks=10, block_size=4, order=order, staging_bytes=staging_bytes)


@every_order
def test_shape_and_bytes(order: PoolOrder) -> None:
    made = cache("bfloat16", order)
    assert made.pool.shape == (3, 10, 2, 4, 2, 4)
    assert made.layout.block_bytes == 2 * 4 * 2 * 4 * 2
    assert made.buffer.shape == (made.layout.nbytes,)


@every_order
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_buffer_is_the_pool(dtype: Dtype, order: PoolOrder) -> None:
    made = cache(dtype, order)
    made.pool[1, 7] = 1.5
    begin = made.layout.offset(1, 7)
    piece = slice(begin, begin + made.layout.block_bytes)
    one = torch.full((1,), 1.5, dtype=DTYPES[dtype]).view(torch.uint8).numpy()
    assert (made.buffer[piece].reshape(-1, len(one)) == one).all()
    assert np.count_nonzero(made.buffer) == np.count_nonzero(made.buffer[piece])
    made.buffer[piece] = 0
    assert not made.pool.any()


@pytest.mark.parametrize("heads_first", [False, True])
def test_inside_a_block_heads_or_tokens_come_first(heads_first: bool) -> None:
    made = cache(order=PoolOrder(heads_first=heads_first))
    made.pool[0, 0, 1, :, 1] = 1.0  # V of the last head, all tokens
    values = made.buffer[: made.layout.block_bytes].view(np.float32)
    per_token = [0.0] * 4 + [1.0] * 4
    assert values[32:].tolist() == ([0.0] * 16 + [1.0] * 16 if heads_first else per_token * 4)


def test_staging_lies_behind_the_pool_and_shares_its_memory() -> None:
    made = cache(staging_bytes=64)
    assert made.buffer.shape == (made.layout.nbytes + 64,)
    made.buffer[made.layout.nbytes :] = 255
    assert not made.pool.any()
    made.pool.fill_(1.0)
    assert (made.buffer[made.layout.nbytes :] == 255).all()


def test_slots_follow_the_block_table() -> None:
    assert cache().slots([7, 2], 0, 6) == [28, 29, 30, 31, 8, 9]
    assert cache().slots([7, 2, 5], 7, 3) == [11, 20, 21]


@every_order
def test_what_is_written_is_read_in_table_order(order: PoolOrder) -> None:
    made = cache(order=order)
    tables = [[7, 2], [3, 9]]
    k, v = torch.randn(2, 8, 2, 4), torch.randn(2, 8, 2, 4)
    for row, table in enumerate(tables):
        made.write(1, torch.tensor(made.slots(table, 0, 8)), k[row], v[row])
    found_k, found_v = made.read(1, torch.tensor(tables))
    assert torch.equal(found_k, k)
    assert torch.equal(found_v, v)
    swapped, _ = made.read(1, torch.tensor(tables[0][::-1]))
    assert torch.equal(swapped, torch.cat((k[0, 4:], k[0, :4])))
    assert not made.pool[0].any()
    assert not made.pool[2].any()


@every_order
def test_a_latent_is_one_plane(order: PoolOrder) -> None:
    spec = ModelSpec("c", 3, 16, 4, 1, 6, 8, 11, latent=LatentShape(6, 4, 2, 4))  # 6 + 2 numbers a token and layer
    made = KVCache(spec, num_blocks=10, block_size=4, order=order)
    assert made.pool.shape == (3, 10, 1, 4, 1, 8)
    assert made.layout.nbytes == 10 * 4 * spec.kv_bytes_per_token() == 10 * 4 * 3 * 8 * 4
    written = torch.randn(8, 1, 8)
    made.write(1, torch.tensor(made.slots([7, 2], 0, 8)), written)
    (found,) = made.read(1, torch.tensor([7, 2]))
    assert torch.equal(found, written)
    begin = made.layout.offset(1, 2)
    piece = made.buffer[begin : begin + made.layout.block_bytes].view(np.float32)
    assert np.array_equal(piece, written[4:].numpy().ravel())


@every_order
def test_a_write_touches_its_slots_only(order: PoolOrder) -> None:
    made = cache(order=order)
    made.pool.fill_(5.0)
    made.write(0, torch.tensor(made.slots([6], 1, 2)), torch.zeros(2, 2, 4), torch.zeros(2, 2, 4))
    assert (made.pool[0, 6, :, 1:3] == 0).all()
    assert int((made.pool == 0).sum()) == 2 * 2 * 2 * 4


@settings(deadline=None)
@given(table=st.permutations(range(10)), num_blocks=st.integers(1, 10), layer=st.integers(0, 2))
def test_all_orders_read_the_same_bits(table: list[int], num_blocks: int, layer: int) -> None:
    table = table[:num_blocks]
    k, v = torch.randn(2, num_blocks * 4, 2, 4)
    for order in ORDERS:
        made = cache(order=order)
        made.write(layer, torch.tensor(made.slots(table, 0, num_blocks * 4)), k, v)
        found_k, found_v = made.read(layer, torch.tensor(table))
        assert torch.equal(found_k, k), order
        assert torch.equal(found_v, v), order
