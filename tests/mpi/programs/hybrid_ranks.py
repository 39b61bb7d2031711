"""Hybrid ranks in one session: the same requests colocated, then each staying or moving, whichever way is drawn.

Usage: hybrid_ranks.py FOLDER TRANSPORT. Five ranks, of which four work. The pools hold little more than two requests,
and all requests come at once: ranks wait for each other's blocks wherever the policy lets them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection

import numpy as np
from sessions import make_setup, play

from xpyd.dispatch import Dispatch, HybridDispatch, PoolDispatch
from xpyd.economics.cost import ComputePoint, LinkPoint, fit_compute, fit_link
from xpyd.economics.scenario import Calibration, RequestClass, Scenario
from xpyd.hybrid import Decision, HybridConfig, HybridPolicy
from xpyd.model.spec import ModelSpec
from xpyd.placement import Placement, PlacementConfig, Role
from xpyd.records import COLOCATED, HYBRID
from xpyd.request import Request
from xpyd.router import LeastOutstanding
from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker.block import Block
from xpyd.worker.session import Session
from xpyd.worker.transfer_config import TransferConfig

MODEL = ModelSpec("test", 3, 32, 4, 2, 8, 64, 160)
SCHEDULER = SchedulerConfig("chunked", max_num_seqs=4, max_num_batched_tokens=32, block_size=4, num_kv_blocks=48)
NUM_REQUESTS = 14
TRANSFERS = (
    TransferConfig(verify="always", direction="pull", mode="layerwise"),
    TransferConfig(verify="always", direction="push", mode="whole"),
)


class Drawn(HybridPolicy):
    """Every way that is allowed is as likely as any other."""

    generator = np.random.default_rng(0)

    def decide(self, input_len: int, output_len: int, present: Collection[int], now_s: float, home: int) -> Decision:
        found = self.ways(input_len, output_len, present, now_s)
        ways = [found.stay(rank) for rank in present] + (self.moves(found, now_s) if output_len > 1 else [])
        chosen = ways[self.generator.integers(len(ways))]
        return Decision(chosen, chosen, None, "drawn")


class DrawingSession(Session):
    def _dispatch(self, block: Block, placement: Placement) -> Dispatch:
        if block.arm != HYBRID:
            return super()._dispatch(block, placement)
        points = [ComputePoint(0.001 * n, num_prefill_tokens=n) for n in range(1, 9)]
        links = [LinkPoint(n * 1000, 1, 0.001 * n) for n in range(1, 5)]
        classes = (RequestClass(1.0, 50, 12),)
        limits = 4, 32, 4, 48  # as in SCHEDULER
        scenario = Scenario(MODEL, classes, NUM_REQUESTS, 2, 2, "chunked", *limits, "layerwise", 1 << 20, rate_rps=9.0)
        pools = self.placement.leaders(Role.PREFILL), self.placement.leaders(Role.DECODE)
        calibration = Calibration(fit_compute(points), fit_link(links))
        policy = Drawn(HybridConfig("cost"), calibration, scenario, pools)
        return HybridDispatch(policy, PoolDispatch(LeastOutstanding(), None))


def main() -> None:
    lengths = np.random.default_rng(1).integers(4, 120, NUM_REQUESTS)
    requests = [Request(i, 0, int(n), 1 if i == 5 else 12, seed=i) for i, n in enumerate(lengths)]
    blocks = [Block(0, 0, COLOCATED, requests, concurrency=NUM_REQUESTS)]
    for number, transfer in enumerate(TRANSFERS, 1):
        blocks.append(Block(number, 0, HYBRID, requests, concurrency=NUM_REQUESTS, transfer=transfer))
    placement = PlacementConfig(num_prefill=2, num_decode=2, allow_shared_node=True)
    play(make_setup(MODEL, placement, SCHEDULER, sys.argv[2], TRANSFERS[0]), sys.argv[1], blocks, DrawingSession)


if __name__ == "__main__":
    main()
