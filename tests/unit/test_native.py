"""The compiled kernels do what torch does, and a sequence's result is its own, whatever runs beside it."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from xpyd import native
from xpyd.kv.cache import DTYPES, KVCache
from xpyd.kv.layout import PoolOrder
from xpyd.model.attention import attend_decodes
from xpyd.model.batch import DecodeGroup
from xpyd.model.rope import Rope, rotate
from xpyd.model.spec import Dtype, ModelSpec
from xpyd.model.tensors import Linear, gated, rms_norm

ORDERS = [PoolOrder(*each) for each in product((False, True), repeat=2)]
CLOSE = {"float32": {"rtol": 2e-6, "atol": 2e-6}, "bfloat16": {"rtol": 1.6e-2, "atol": 1e-2}}  # torch rounds more
LENS = (1, 5, 16, 33)


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if not native.available():
        pytest.skip("src/xpyd/native is not compiled: no C compiler where xpyd was installed")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """For the reference: everything in torch, from the call of ``setattr`` on."""
    return monkeypatch


def without_kernels(plain: pytest.MonkeyPatch) -> None:
    plain.setattr(native, "kernels", lambda: None)


def spec_of(dtype: Dtype, head_dim: int = 32) -> ModelSpec:
    return ModelSpec("x", 2, 64, 6, 2, head_dim, 64, 64, dtype=dtype)


def filled(spec: ModelSpec, order: PoolOrder, block_size: int) -> tuple[KVCache, DecodeGroup]:
    cache = KVCache(spec, 60, block_size, order=order)
    cache.pool.normal_(generator=torch.Generator().manual_seed(1))
    tables = torch.randperm(60, generator=torch.Generator().manual_seed(2))[: 4 * (32 // block_size + 1)].view(4, -1)
    return cache, DecodeGroup(0, 4, tables, torch.tensor(LENS), None, block_size)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("dtype", "head_dim", "block_size"), [("float32", 32, 4), ("bfloat16", 64, 16)])
@pytest.mark.parametrize("order", ORDERS)
def test_attention_in_place_is_that_of_gathered_blocks(
    plain: pytest.MonkeyPatch, order: PoolOrder, dtype: Dtype, head_dim: int, block_size: int, window: int | None
) -> None:
    cache, group = filled(spec_of(dtype, head_dim), order, block_size)
    group = DecodeGroup(0, 4, group.tables, group.ends, window, block_size)
    queries = torch.randn(4, 10, head_dim, generator=torch.Generator().manual_seed(3)).to(DTYPES[dtype])[:, :6]
    found = attend_decodes(queries, cache, 1, group)
    without_kernels(plain)
    torch.testing.assert_close(found, attend_decodes(queries, cache, 1, group), **CLOSE[dtype])


def test_a_sequence_attends_alike_alone_and_in_a_batch() -> None:
    cache, group = filled(spec_of("float32"), PoolOrder(), 4)
    queries = torch.randn(4, 6, 32)
    together = attend_decodes(queries, cache, 0, group)
    for i in range(4):
        alone = DecodeGroup(0, 1, group.tables[i : i + 1].contiguous(), group.ends[i : i + 1], None, 4)
        assert torch.equal(attend_decodes(queries[i : i + 1], cache, 0, alone)[0], together[i])


@pytest.mark.parametrize("order", ORDERS)
def test_writes_land_where_torch_puts_them(plain: pytest.MonkeyPatch, order: PoolOrder) -> None:
    spec = spec_of("bfloat16")
    kernels, torchs = KVCache(spec, 8, 4, order=order), KVCache(spec, 8, 4, order=order)
    rows = torch.randn(5, 10, 32).to(torch.bfloat16)
    slots = torch.tensor([0, 3, 4, 17, 31])
    kernels.write(1, slots, rows[:, 6:8], rows[:, 8:])
    without_kernels(plain)
    torchs.write(1, slots, rows[:, 6:8], rows[:, 8:])
    assert torch.equal(kernels.pool, torchs.pool)
    assert int(kernels.pool.count_nonzero()) > 600


@pytest.mark.parametrize("dtype", CLOSE)
def test_small_operations_are_those_of_torch(plain: pytest.MonkeyPatch, dtype: Dtype) -> None:
    spec, kind = spec_of(dtype), DTYPES[dtype]
    x, weight = torch.randn(5, 96).to(kind), torch.randn(96).to(kind)
    gates = torch.cat((torch.tensor([[-200.0, -30.0, 0.0, 30.0, 200.0]] * 5), torch.randn(5, 91)), dim=1).to(kind)
    heads = torch.randn(5, 8, 32).to(kind)
    angles = Rope.of(spec).angles(torch.tensor([0, 1, 7, 100, 9000]), kind)
    found = rms_norm(x, weight, 1e-5), gated(gates), rotate(heads.clone()[:, :6], angles)
    without_kernels(plain)
    expected = rms_norm(x, weight, 1e-5), gated(gates), rotate(heads[:, :6], angles)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE[dtype])


def test_they_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native.OFF, "0")
    native.kernels.cache_clear()
    try:
        assert not native.available()
    finally:
        monkeypatch.undo()
        native.kernels.cache_clear()
    assert native.available()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [0, 1, 3, 13, 71])
def test_a_linear_keeps_its_matrix_and_multiplies_by_it(dtype: torch.dtype, num_rows: int) -> None:
    matrix, bias, x = (torch.randn(shape).to(dtype) for shape in ((70, 300), (70,), (num_rows, 300)))
    linear = Linear(matrix, bias)
    assert torch.equal(linear.matrix, matrix)
    expected = (x.double() @ matrix.double().t() + bias.double()).to(dtype)
    tolerance = {torch.float32: 5e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}[dtype]
    torch.testing.assert_close(linear(x), expected, rtol=tolerance, atol=tolerance)
