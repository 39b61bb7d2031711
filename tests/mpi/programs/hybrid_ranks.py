"""Hybrid ranks in one session: the same requests colocated, then each staying or moving, whichever way is drawn.

Usage: hybrid_ranks.py FOLDER TRANSPORT. Five ranks, of which four work. The pools hold little more than two requests,
and all requests come at once: ranks wait for each other's blocks wherever the policy lets them.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np

from xpyd.dispatch import Dispatch, HybridDispatch
from xpyd.economics.cost import ComputePoint, LinkPoint, fit_compute, fit_link
from xpyd.economics.scenario import Calibration, RequestClass, Scenario
from xpyd.faults import FaultConfig
from xpyd.hybrid import Decision, HybridConfig, HybridPolicy
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.mpi import MPI
from xpyd.placement import Placement, PlacementConfig, Role
from xpyd.records import COLOCATED, HYBRID
from xpyd.request import Request
from xpyd.router import RouterConfig
from xpyd.run_dir import RunDir
from xpyd.scheduler.base import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.session import Block, Session, Setup
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

    def decide(self, input_len: int, output_len: int, present: Collection[int], now_s: float) -> Decision:
        cls = RequestClass(1.0, input_len, output_len)
        moves = [self._move(cls, *pair, now_s) for pair in self._pairs(cls, present, now_s)]
        ways = [self._stay(cls, rank, now_s) for rank in present] + (moves if output_len > 1 else [])
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
        return HybridDispatch(Drawn(HybridConfig("cost"), calibration, scenario, pools))


def main() -> None:
    comm = MPI.COMM_WORLD
    setup = Setup(
        MODEL,
        PlacementConfig(num_prefill=2, num_decode=2, allow_shared_node=True),
        SCHEDULER,
        TransportConfig(sys.argv[2]),  # type: ignore[arg-type]
        TRANSFERS[0],
        FabricConfig("test", 10.0),
        SamplingConfig(),
        RouterConfig(),
        20.0,
        FaultConfig(detect_s=30.0),  # a crowded machine is no fault
    )
    run_dir = RunDir(Path(sys.argv[1]))
    if comm.rank == 0:
        (run_dir.path / "streams").mkdir(parents=True, exist_ok=True)
    comm.Barrier()
    lengths = np.random.default_rng(1).integers(4, 120, NUM_REQUESTS)
    requests = [Request(i, 0, int(n), 1 if i == 5 else 12, seed=i) for i, n in enumerate(lengths)]
    with DrawingSession(setup, comm, run_dir, lambda: False) as session:
        session.play(Block(0, 0, COLOCATED, requests, concurrency=NUM_REQUESTS))
        for number, transfer in enumerate(TRANSFERS, 1):
            played = session.play(Block(number, 0, HYBRID, requests, concurrency=NUM_REQUESTS, transfer=transfer))
            assert played is None or not played.unfinished, f"{transfer.mode}: {played}"
    comm.Barrier()
    if comm.rank == 0:
        run_dir.finish()


if __name__ == "__main__":
    main()
