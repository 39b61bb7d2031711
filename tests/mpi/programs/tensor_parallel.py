"""Serve three requests between instances of given widths, each pair of widths in a session of its own.

Usage: tensor_parallel.py FOLDER PREFILLxDECODE:TRANSPORT:MODE ...; as many ranks as the largest needs. A session runs
on the first ranks of the world; run folders are FOLDER/serve/0, 1, ...
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from xpyd.clock import wait_quietly
from xpyd.faults import FaultConfig
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.mpi import MPI
from xpyd.placement import PlacementConfig
from xpyd.records import DISAGGREGATED
from xpyd.request import Request
from xpyd.router import RouterConfig
from xpyd.run_dir import RunDir
from xpyd.scheduler.base import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.session import Block, Session, Setup
from xpyd.worker.transfer_config import TransferConfig

SPEC = ModelSpec("micro", 2, 64, 8, 2, 16, 128, 256)  # 2 KV heads: 4 ranks hold two copies of each
SCHEDULER = SchedulerConfig("chunked", max_num_seqs=4, max_num_batched_tokens=32, block_size=8, num_kv_blocks=64)
REQUESTS = [Request(i, i * 1_000_000, input_len, 5, seed=i) for i, input_len in enumerate((40, 21, 33))]


def serve(comm: Any, folder: Path, number: int, prefill_tp: Any, decode_tp: Any, transport: Any, mode: Any) -> None:
    placement = PlacementConfig(1, 1, prefill_tp=prefill_tp, decode_tp=decode_tp, allow_shared_node=True)
    transfer = TransferConfig(mode, block_order="heads_first", max_piece_bytes=3000, verify="always")
    transfer.check_widths(placement, SPEC.num_kv_heads)
    sampling, router = SamplingConfig(), RouterConfig()
    wire = TransportConfig(transport), transfer, FabricConfig("auto", 10.0)
    setup = Setup(SPEC, placement, SCHEDULER, *wire, sampling, router, 60.0, FaultConfig(detect_s=30.0))
    run_dir = RunDir(Path(comm.bcast(RunDir.create(folder, "serve", str(number)).path if comm.rank == 0 else None)))
    with Session(setup, comm, run_dir, lambda: False) as session:
        session.play(Block(0, 0, DISAGGREGATED, REQUESTS))
    wait_quietly(comm)
    if comm.rank == 0:
        run_dir.finish()


def main() -> None:
    world = MPI.COMM_WORLD
    for number, combination in enumerate(sys.argv[2:]):
        widths, transport, mode = combination.split(":")
        prefill_tp, decode_tp = (int(width) for width in widths.split("x"))
        color = 0 if world.rank < 1 + prefill_tp + decode_tp else MPI.UNDEFINED
        comm = world.Split(color, world.rank)
        if comm != MPI.COMM_NULL:
            serve(comm, Path(sys.argv[1]), number, prefill_tp, decode_tp, transport, mode)
        wait_quietly(world)


if __name__ == "__main__":
    main()
