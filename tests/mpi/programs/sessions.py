"""A real session between the ranks of a test program: what every such program needs besides its own blocks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from xpyd.faults import FaultConfig
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.mpi import MPI
from xpyd.placement import CLIENT_RANK, PlacementConfig
from xpyd.router import RouterConfig
from xpyd.run_dir import RunDir
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.block import Block, Setup
from xpyd.worker.session import Session
from xpyd.worker.transfer_config import TransferConfig

FABRIC = FabricConfig("test", 10.0)


def make_setup(
    model: ModelSpec,
    placement: PlacementConfig,
    scheduler: SchedulerConfig,
    transport: str,
    transfer: TransferConfig,
    fabric: FabricConfig = FABRIC,
) -> Setup:
    return Setup(
        model,
        placement,
        scheduler,
        TransportConfig(transport),  # type: ignore[arg-type]
        transfer,
        fabric,
        SamplingConfig(),
        RouterConfig(),
        20.0,
        FaultConfig(detect_s=30.0),  # a crowded machine is no fault
    )


def play(
    setup: Setup,
    folder: str,
    blocks: Iterable[Block],
    kind: type[Session] = Session,
    prepare: Callable[[Session], None] = lambda session: None,
) -> None:
    """Play the blocks and merge their rows to ``folder``; every request of each must finish. Collective."""
    comm, run_dir = MPI.COMM_WORLD, RunDir(Path(folder))
    if comm.rank == 0:
        (run_dir.path / "streams").mkdir(parents=True, exist_ok=True)
    comm.Barrier()
    with kind(setup, comm, run_dir, lambda: False) as session:
        prepare(session)
        for block in blocks:
            played = session.play(block)
            if played is not None:
                assert not played.unfinished, (
                    f"block {block.number}, {block.arm}, {block.transfer}: {played.unfinished}"
                )
    assert (comm.rank == CLIENT_RANK) == ("torch" not in sys.modules), "who has no model does without torch"
    comm.Barrier()
    if comm.rank == 0:
        run_dir.finish()
