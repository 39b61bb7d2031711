"""The arms of the ``kv_cache`` experiment; plain data, no torch, no MPI."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from annotated_types import Gt, MinLen

from xpyd.kv.eviction import EvictionPolicy
from xpyd.scheduler.config import SchedulerConfig

NO_CACHE = "none"


@dataclass(frozen=True)
class KvCacheSweep:
    """Every eviction policy with every depth of tiers, beside no cache at all. Each tier includes those before it."""

    policies: Annotated[tuple[EvictionPolicy, ...], MinLen(1)]
    tiers: Annotated[tuple[Literal["pool", "host", "remote"], ...], MinLen(1)]
    num_host_blocks: Annotated[int, Gt(0)]
    num_remote_blocks: Annotated[int, Gt(0)]  # lent by each worker
    num_repeats: Annotated[int, Gt(0)]

    def __post_init__(self) -> None:
        for name, given in (("policies", self.policies), ("tiers", self.tiers)):
            if len(set(given)) < len(given):
                raise ValueError(f"sweep.{name}={list(given)}: give each once")

    def arms(self, scheduler: SchedulerConfig) -> dict[str, SchedulerConfig]:
        """The scheduler of every arm by name, ``none`` first; the sweep's sizes replace those of ``scheduler``."""
        plain = replace(scheduler, prefix_cache=False, eviction="lru", num_host_blocks=0, num_remote_blocks=0)
        found = {NO_CACHE: plain}
        for tier in self.tiers:
            for policy in self.policies:
                found[f"{tier} {policy}"] = replace(
                    plain,
                    prefix_cache=True,
                    eviction=policy,
                    num_host_blocks=0 if tier == "pool" else self.num_host_blocks,
                    num_remote_blocks=self.num_remote_blocks if tier == "remote" else 0,
                )
        return found

    def largest(self, scheduler: SchedulerConfig) -> SchedulerConfig:
        """What a session has to make room for: every tier that an arm has."""
        arms = self.arms(scheduler).values()
        host, remote = (max(getattr(arm, f"num_{tier}_blocks") for arm in arms) for tier in ("host", "remote"))
        return replace(scheduler, prefix_cache=True, num_host_blocks=host, num_remote_blocks=remote)
