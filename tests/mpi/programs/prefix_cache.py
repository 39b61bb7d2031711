"""Prompts with shared beginnings, without and with a prefix cache: colocated, then moved in every mode.

Usage: prefix_cache.py FOLDER TRANSPORT SETTINGS (JSON of TransferConfig fields) WIDTH. Three ranks, colocated as
instances of WIDTH.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product

from sessions import make_setup, play

from xpyd.model.spec import ModelSpec
from xpyd.placement import PlacementConfig
from xpyd.records import COLOCATED, DISAGGREGATED
from xpyd.request import Request
from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker.block import Block
from xpyd.worker.transfer_config import TransferConfig

MODEL = ModelSpec("test", 3, 32, 4, 2, 8, 64, 128)
PLAIN = SchedulerConfig("chunked", max_num_seqs=3, max_num_batched_tokens=32, block_size=4, num_kv_blocks=20)
CACHED = replace(PLAIN, prefix_cache=True)
LENGTHS = ((40, 4), (50, 4), (41, 1), (40, 4), (37, 4), (64, 4), (50, 4), (45, 4)) * 2
REQUESTS = [
    Request(i, 0, n, out, seed=i % 6, prefix_len=36, prefix_seed=9 + i % 4 // 2) for i, (n, out) in enumerate(LENGTHS)
]


def blocks(transfer: TransferConfig, width: int) -> list[Block]:
    pull_only = transfer.staging != "off"
    modes = product(("pull",) if pull_only else ("pull", "push"), ("whole", "layerwise", "chunkwise"))
    moved = [replace(transfer, direction=direction, mode=mode) for direction, mode in modes]
    tiered = replace(CACHED, num_host_blocks=32, fetch="always")
    remote = replace(CACHED, num_remote_blocks=64, fetch="always")
    both = replace(remote, num_host_blocks=6)
    arms = [(COLOCATED, PLAIN, None), (COLOCATED, CACHED, None)]
    arms += [(COLOCATED, tiered, None), (COLOCATED, remote, None), (COLOCATED, both, None)] if width == 1 else []
    arms += [(DISAGGREGATED, CACHED, each) for each in moved]
    return [
        Block(number, 0, arm, REQUESTS, concurrency=3, transfer=each, scheduler=scheduler)
        for number, (arm, scheduler, each) in enumerate(arms)
    ]


def main() -> None:
    transfer, width = TransferConfig(verify="always", **json.loads(sys.argv[3])), int(sys.argv[4])
    placement = PlacementConfig(1, 1, colocated_tp=width, allow_shared_node=True)  # type: ignore[arg-type]
    scheduler = replace(CACHED, num_remote_blocks=64, fetch="always") if width == 1 else PLAIN
    play(make_setup(MODEL, placement, scheduler, sys.argv[2], transfer), sys.argv[1], blocks(transfer, width))


if __name__ == "__main__":
    main()
