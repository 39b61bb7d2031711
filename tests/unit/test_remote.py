"""The remote pool's arithmetic: where bytes go, who keeps a chain, and when fetching is the cheaper."""

from __future__ import annotations

import numpy as np
import pytest

from xpyd.economics.cost import ComputeModel, LinkModel
from xpyd.kv.entries import Entry, block_keys
from xpyd.kv.eviction import Use
from xpyd.kv.layout import PoolLayout
from xpyd.kv.prefix import PrefixCache
from xpyd.kv.remote import Outbox, home_of, plan_fetch, plan_put
from xpyd.kv.tiers import FetchCosts

ROOTS = [block_keys([i] * 4, 4, [])[0] for i in range(300)]


def entry(token: int) -> Entry:
    key = block_keys([token] * 4, 4, [])[0]
    return Entry(key, b"", [token] * 4, 0, Use(0, 0, 0), key)


def test_homes_are_shared_out_and_the_same_on_every_rank() -> None:
    homes = [home_of(root, (1, 3, 4)) for root in ROOTS]
    assert {homes.count(rank) // 50 for rank in (1, 3, 4)} <= {1, 2}
    assert set(homes) == {1, 3, 4}
    assert homes == [home_of(bytes(root), (1, 3, 4)) for root in ROOTS]


@pytest.mark.parametrize("blocks_first", [False, True])
@pytest.mark.parametrize("limit", [8, 1 << 20])
def test_a_fetch_lands_every_layer_of_every_block(blocks_first: bool, limit: int) -> None:
    layout = PoolLayout(3, 6, 8, blocks_first)
    shelf = np.arange(5 * 24, dtype=np.uint8)  # 5 slots of 3 layers of 8 bytes
    pool = np.full(layout.nbytes, 255, np.uint8)
    plan = plan_fetch(layout, (0, [4, 1]), [2, 5], limit)
    for source, landing in zip(plan.source, plan.destination, strict=True):
        assert source.nbytes == landing.nbytes <= limit
        pool[landing.offset : landing.offset + landing.nbytes] = shelf[source.offset : source.offset + source.nbytes]
    for slot, block in ((4, 2), (1, 5)):
        for layer in range(3):
            begin = layout.offset(layer, block)
            assert pool[begin : begin + 8].tolist() == list(range(slot * 24 + layer * 8, slot * 24 + layer * 8 + 8))
    assert (pool == 255).sum() == layout.nbytes - 2 * 24


def test_a_put_merges_neighbours() -> None:
    plan = plan_put(24, (1000, [2, 3, 0]), (5000, [7, 8, 1]), 1 << 20)
    assert [(s.offset, s.nbytes) for s in plan.source] == [(1048, 48), (1000, 24)]
    assert [d.offset for d in plan.destination] == [5168, 5024]


def test_a_full_outbox_forgets() -> None:
    outbox = Outbox(2)
    slots = [outbox.adopt(entry(i)) for i in range(3)]
    assert slots == [0, 1, None]
    assert [slot for slot, _ in outbox.take()] == [0, 1]
    assert outbox.take() == []
    outbox.give_back([1])
    assert outbox.adopt(entry(9)) == 1


def test_a_block_that_came_twice_takes_one_slot() -> None:
    shelf = PrefixCache(2, 4)
    first, second = shelf.allocate(2)
    shelf.enter(first, entry(1))
    shelf.enter(second, entry(1))
    assert shelf.find(entry(1).key) == first
    assert shelf.num_free == 2


def test_fetch_or_recompute_by_hand() -> None:
    """2 ms + 1 ms a block against 16 tokens of 0.1 ms each, 0.01 ms for each pair: (16 * before + 136) * 1e-5."""
    costs = FetchCosts(ComputeModel(9.0, 1e-4, 1e-5, 9.0, 9.0), LinkModel(2e-3, 0.0, 1e6), 16, 1000)
    assert costs.fetch_s(3) == pytest.approx(5e-3)
    assert costs.recompute_s(0, 1) == pytest.approx(1.6e-3 + 1.36e-3)
    assert costs.recompute_s(100, 1) == pytest.approx(1.6e-3 + 17.36e-3)
    assert not costs(0, 1)
    assert costs(100, 1)
