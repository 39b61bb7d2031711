"""Serve three requests between instances of several ranks, each pair of instances in a session of its own.

Usage: instances.py FOLDER PREFILL-DECODE:MODEL:TRANSPORT:MODE[:COLLECTIVES] ...; as many ranks as the largest needs. An
instance is a kind and a width, such as tp2, pp4, cp2 or ep2. A session runs on the first ranks of the world; run
folders are FOLDER/serve/0, 1, ...
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from xpyd.clock import wait_quietly
from xpyd.faults import FaultConfig
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.shapes import ExpertsShape, LatentShape
from xpyd.model.spec import ModelSpec
from xpyd.mpi import MPI
from xpyd.placement import PlacementConfig
from xpyd.records import DISAGGREGATED
from xpyd.request import Request
from xpyd.router import RouterConfig
from xpyd.run_dir import RunDir
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.block import Block, Setup
from xpyd.worker.session import Session
from xpyd.worker.transfer_config import TransferConfig

SPEC = ModelSpec("micro", 2, 64, 8, 2, 16, 128, 256)  # 2 KV heads: 4 ranks hold two copies of each
DEEP = replace(SPEC, num_layers=5)  # stages of 2 and 3 layers, or of 1, 1, 1 and 2
LATENT = LatentShape(12, 16, 8, 16)
EXPERTS = ExpertsShape(8, 3, 32, shared_intermediate_size=16, first_k_dense_replace=1)
SPECS = {
    "micro": SPEC,
    "deep": DEEP,
    "latent": replace(DEEP, num_kv_heads=1, head_dim=24, latent=LATENT),
    "experts": replace(DEEP, experts=EXPERTS),
}
SCHEDULER = SchedulerConfig("chunked", max_num_seqs=4, max_num_batched_tokens=32, block_size=8, num_kv_blocks=64)
REQUESTS = [Request(i, i * 1_000_000, input_len, 5, seed=i) for i, input_len in enumerate((40, 21, 33))]


def placement_of(ends: str, collectives: Any) -> PlacementConfig:
    """``cp2-pp4``: one prefill instance of two context-parallel ranks, one decode instance of four stages."""
    widths: Any = {
        f"{role}_{end[:2]}": int(end[2:]) for role, end in zip(("prefill", "decode"), ends.split("-"), strict=True)
    }
    return PlacementConfig(1, 1, allow_shared_node=True, collectives=collectives, **widths)


def serve(
    comm: Any, folder: Path, number: int, placement: PlacementConfig, spec: ModelSpec, transport: Any, mode: Any
) -> None:
    transfer = TransferConfig(mode, block_order="heads_first", max_piece_bytes=3000, verify="always")
    transfer.check_widths(placement, spec.num_kv_heads)
    sampling, router = SamplingConfig(), RouterConfig()
    wire = TransportConfig(transport), transfer, FabricConfig("auto", 10.0)
    setup = Setup(spec, placement, SCHEDULER, *wire, sampling, router, 60.0, FaultConfig(detect_s=30.0))
    run_dir = RunDir(Path(comm.bcast(RunDir.create(folder, "serve", str(number)).path if comm.rank == 0 else None)))
    with Session(setup, comm, run_dir, lambda: False) as session:
        session.play(Block(0, 0, DISAGGREGATED, REQUESTS))
    wait_quietly(comm)
    if comm.rank == 0:
        run_dir.finish()


def main() -> None:
    world = MPI.COMM_WORLD
    for number, combination in enumerate(sys.argv[2:]):
        ends, model, transport, mode, *collectives = combination.split(":")
        placement = placement_of(ends, *collectives or ["auto"])
        color = 0 if world.rank < placement.world_size else MPI.UNDEFINED
        comm = world.Split(color, world.rank)
        if comm != MPI.COMM_NULL:
            serve(comm, Path(sys.argv[1]), number, placement, SPECS[model], transport, mode)
        wait_quietly(world)


if __name__ == "__main__":
    main()
