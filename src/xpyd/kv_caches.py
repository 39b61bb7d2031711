"""The ``kv_cache`` experiment: the same requests without a cache, and with each policy and tier, interleaved.

Arms come in a fresh order every repeat, so that a drift of the machine falls on all of them. Every block begins with
empty tiers.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from xpyd.config.serve import KvCache
from xpyd.entry import Job
from xpyd.trial import open_session, play_all
from xpyd.worker.block import Block


def run_kv_caches(job: Job) -> None:
    """Make room for every tier that an arm has, and play all blocks. Collective."""
    config: KvCache = job.config
    with open_session(job, config.sweep.largest(config.scheduler)) as session:
        play_all(session, kv_cache_blocks(config), job)


def kv_cache_blocks(config: KvCache) -> list[Block]:
    """One block for each arm in each repeat (the block's ``pair``); those of a repeat have the same requests."""
    arms = config.sweep.arms(config.scheduler)
    generator = np.random.default_rng(0)
    found: list[Block] = []
    for repeat in range(config.sweep.num_repeats):
        requests = config.workload.build(repeat)
        for which in generator.permutation(len(arms)):
            name = list(arms)[which]
            block = Block(len(found), repeat, name, requests, config.workload.concurrency, scheduler=arms[name])
            found.append(replace(block, speculates=False))
    return found
