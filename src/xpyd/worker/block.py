"""What a session is told: the parts of the configuration that it reads, and the blocks that it plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from xpyd.faults import FaultConfig
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.placement import PlacementConfig
from xpyd.request import Request
from xpyd.router import RouterConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.transfer_config import TransferConfig


@dataclass(frozen=True)
class Setup:
    """The parts of the configuration that a session reads; the arms share them all."""

    model: ModelSpec
    placement: PlacementConfig
    scheduler: SchedulerConfig
    transport: TransportConfig
    transfer: TransferConfig
    fabric: FabricConfig
    sampling: SamplingConfig
    router: RouterConfig
    drain_timeout_s: float
    faults: FaultConfig = field(default_factory=FaultConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)


@dataclass(frozen=True)
class Block:
    """One stretch of one arm: ``requests`` are the same in all blocks of a ``pair``. ``number`` < 0: warm-up.

    ``transfer`` and ``scheduler`` replace the session's for this block, all but what the pool was built with; without
    ``speculates`` nothing is guessed, whatever the session's draft is.
    """

    number: int
    pair: int
    arm: str
    requests: Sequence[Request]
    concurrency: int | None = None
    transfer: TransferConfig | None = None
    scheduler: SchedulerConfig | None = None
    speculates: bool = True


def warm_up_blocks(blocks: Sequence[Block], num_requests: int = 3) -> list[Block]:
    """A short unrecorded block for each arm: caches, connections and code paths are warm before the first stamp."""
    seen: dict[str, Block] = {}
    for block in blocks:
        seen.setdefault(block.arm, block)
    return [
        replace(block, number=-1 - i, requests=block.requests[:num_requests]) for i, block in enumerate(seen.values())
    ]
