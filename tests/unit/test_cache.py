"""The pool as tensor and as bytes: one memory; blocks written through slots come back through tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xpyd.kv.cache import DTYPES, KVCache
from xpyd.model.spec import Dtype, ModelSpec


def cache(dtype: Dtype = "float32") -> KVCache:
    spec = ModelSpec("c", 3, 16, 4, 2, 4, 8, 11, dtype=dtype)  # 3 layers, 2 KV heads of 4
    return KVCache(spec, num_blocks=10, block_size=4)


def test_shape_and_bytes() -> None:
    made = cache("bfloat16")
    assert made.pool.shape == (3, 10, 2, 4, 2, 4)
    assert made.layout.block_bytes == 2 * 4 * 2 * 4 * 2
    assert made.buffer.shape == (made.layout.nbytes,)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_buffer_is_the_pool(dtype: Dtype) -> None:
    made = cache(dtype)
    made.pool[1, 7] = 1.5
    begin = made.layout.offset(1, 7)
    piece = slice(begin, begin + made.layout.block_bytes)
    one = torch.full((1,), 1.5, dtype=DTYPES[dtype]).view(torch.uint8).numpy()
    assert (made.buffer[piece].reshape(-1, len(one)) == one).all()
    assert np.count_nonzero(made.buffer) == np.count_nonzero(made.buffer[piece])
    made.buffer[piece] = 0
    assert not made.pool.any()


def test_slots_follow_the_block_table() -> None:
    assert cache().slots([7, 2], 0, 6) == [28, 29, 30, 31, 8, 9]
    assert cache().slots([7, 2, 5], 7, 3) == [11, 20, 21]


def test_what_is_written_is_read_in_table_order() -> None:
    made = cache()
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


def test_a_write_touches_its_slots_only() -> None:
    made = cache()
    made.pool.fill_(5.0)
    made.write(0, torch.tensor(made.slots([6], 1, 2)), torch.zeros(2, 2, 4), torch.zeros(2, 2, 4))
    assert (made.pool[0, 6, :, 1:3] == 0).all()
    assert int((made.pool == 0).sum()) == 2 * 2 * 2 * 4
