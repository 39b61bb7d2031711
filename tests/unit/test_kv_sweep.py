"""The arms of the kv_cache experiment: equal in all but the cache, and the room that a session makes for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker.kv_sweep import KvCacheSweep

BASE = SchedulerConfig("chunked", 4, 32, 16, 64)
SWEEP = KvCacheSweep(("lru", "priority"), ("pool", "host", "remote"), 8, 16, 1)


def test_every_policy_with_every_tier_beside_none() -> None:
    arms = SWEEP.arms(BASE)
    assert list(arms)[:3] == ["none", "pool lru", "pool priority"]
    assert len(arms) == 7
    assert arms["none"] == BASE
    sizes = {name: (arm.eviction, arm.num_host_blocks, arm.num_remote_blocks) for name, arm in arms.items()}
    assert sizes["pool priority"] == ("priority", 0, 0)
    assert sizes["host lru"] == ("lru", 8, 0)
    assert sizes["remote lru"] == ("lru", 8, 16)
    off = {"prefix_cache": False, "eviction": "lru", "num_host_blocks": 0, "num_remote_blocks": 0}
    assert {replace(arm, **off) for arm in arms.values()} == {BASE}  # type: ignore[arg-type]


def test_a_session_makes_room_for_the_deepest_arm_alone() -> None:
    assert SWEEP.largest(BASE) == replace(BASE, prefix_cache=True, num_host_blocks=8, num_remote_blocks=16)
    shallow = replace(SWEEP, tiers=("pool",)).largest(BASE)
    assert (shallow.num_host_blocks, shallow.num_remote_blocks) == (0, 0)


def test_a_policy_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sweep\.policies=\['lru', 'lru'\]: give each once"):
        replace(SWEEP, policies=("lru", "lru"))
