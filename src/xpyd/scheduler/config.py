"""The settings of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from xpyd.kv.eviction import EvictionPolicy

Policy = Literal["chunked", "prefill_first", "static"]


@dataclass(frozen=True)
class SchedulerConfig:
    """One engine's limits, as vLLM names them. ``policy`` is for instances that prefill; decode has one of its own.

    ``max_num_batched_tokens`` bounds a step: it is the chunk size of ``chunked``; under ``prefill_first`` and
    ``static`` a longer prompt runs alone. ``prefix_cache``: blocks are found again by their tokens (``kv.prefix``), and
    ``eviction`` says which go first. ``num_host_blocks``: evicted blocks go to a host arena of so many, and come back
    from there; with ``fetch=cheaper`` only where that costs less than computing them (``kv.tiers``).
    ``num_remote_blocks``: what every worker lends to a pool of all, beneath the host tier.
    """

    policy: Policy
    max_num_seqs: Annotated[int, Gt(0)]
    max_num_batched_tokens: Annotated[int, Gt(0)]
    block_size: Annotated[int, Gt(0)]
    num_kv_blocks: Annotated[int, Gt(0)]
    prefix_cache: bool = False
    eviction: EvictionPolicy = "lru"
    num_host_blocks: Annotated[int, Ge(0)] = 0
    num_remote_blocks: Annotated[int, Ge(0)] = 0
    fetch: Literal["cheaper", "always"] = "cheaper"

    def __post_init__(self) -> None:
        if not self.prefix_cache and (self.eviction != "lru" or self.num_host_blocks or self.num_remote_blocks):
            raise ValueError(
                f"eviction={self.eviction}, num_host_blocks={self.num_host_blocks}, num_remote_blocks="
                f"{self.num_remote_blocks} beside prefix_cache=false: nothing is kept that could be evicted; set "
                "scheduler.prefix_cache=true or leave them out"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} is below max_num_seqs={self.max_num_seqs}: a "
                "step could not hold one token of every decode; raise the former or lower the latter"
            )
