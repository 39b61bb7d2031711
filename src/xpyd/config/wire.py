"""Schemas of the experiments on the link: transfers, their modes, their settings, what receiving costs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import ClassVar

from xpyd.config.base import Ranked
from xpyd.config.checks import check_divisions, check_pool
from xpyd.faults import FaultConfig
from xpyd.model.checkpoint_config import resolve_spec, runnable_spec
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.preflight.options import CheckConfig
from xpyd.router import RouterConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import Need, TransportConfig, placement_needs
from xpyd.worker.search import TuneSearch
from xpyd.worker.sweeps import ContentionSweep, HandoffSweep, WireSweep
from xpyd.worker.transfer_config import TransferConfig


@dataclass(frozen=True)
class Transfer(Ranked):
    transport: TransportConfig
    fabric: FabricConfig
    sweep: WireSweep

    def __post_init__(self) -> None:
        self.transport.check(self.fabric, placement_needs(self.placement))


@dataclass(frozen=True)
class Tune(Ranked):
    transport: TransportConfig
    fabric: FabricConfig
    search: TuneSearch

    def __post_init__(self) -> None:
        ucx = Need("experiment=tune", ("takes_fabric",))  # the others would ignore what it tries
        self.transport.check(self.fabric, [*placement_needs(self.placement), ucx])
        if self.placement.num_colocated:
            raise ValueError(
                f"placement.num_colocated={self.placement.num_colocated}: tune needs a rank that sends and one that "
                "receives; choose xPyD, such as placement=1p1d"
            )


@dataclass(frozen=True)
class Contention(Ranked):
    scheduler: SchedulerConfig  # only its pool, as above
    transport: TransportConfig
    fabric: FabricConfig
    sweep: ContentionSweep

    def __post_init__(self) -> None:
        runnable_spec(self.model)
        self.transport.check(self.fabric, placement_needs(self.placement))
        if self.placement.num_colocated:
            raise ValueError(
                f"placement.num_colocated={self.placement.num_colocated}: contention needs a rank that sends and one "
                "that receives; choose xPyD, such as placement=1p1d"
            )
        if self.placement.several_ranks:
            raise ValueError(
                f"placement.{self.placement.widths}: contention measures pairs of single ranks; set both to 1"
            )
        check_pool(self.scheduler, self.sweep, "sweep.prompt_tokens, sweep.num_decode_seqs or sweep.prefill_tokens")


@dataclass(frozen=True)
class Handoff(Ranked):
    """The hand-off's modes on the same prompts, one at a time; ``transfer`` gives all but mode and direction."""

    scheduler: SchedulerConfig
    transport: TransportConfig
    transfer: TransferConfig
    fabric: FabricConfig
    sweep: HandoffSweep
    faults: FaultConfig = field(default_factory=FaultConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    speculation: ClassVar[SpeculationConfig] = SpeculationConfig()  # one prompt at a time has nothing to show there

    def __post_init__(self) -> None:
        if self.placement.num_colocated:
            raise ValueError(
                f"placement.num_colocated={self.placement.num_colocated}: handoff needs a rank that prefills and one "
                "that decodes; choose xPyD, such as placement=1p1d"
            )
        spec = runnable_spec(self.model)
        check_divisions(self.placement.divisions, spec)
        for transfer in self.transfers:
            self.transport.check(self.fabric, [*placement_needs(self.placement), *transfer.needs()])
            transfer.check_widths(self.placement, spec.num_kv_heads)
            transfer.check(self.scheduler, spec.block_bytes(self.scheduler.block_size))
        needed = -(-(self.sweep.input_len + self.sweep.output_len) // self.scheduler.block_size)
        if needed > self.scheduler.num_kv_blocks:
            raise ValueError(
                f"scheduler.num_kv_blocks={self.scheduler.num_kv_blocks}: a request of the sweep needs {needed}; raise "
                "it, or lower sweep.input_len"
            )

    @property
    def transfers(self) -> list[TransferConfig]:
        """Every point of the sweep."""
        points = product(self.sweep.directions, self.sweep.modes)
        return [replace(self.transfer, direction=direction, mode=mode) for direction, mode in points]

    @property
    def planned_blocks(self) -> int:
        return self.sweep.num_repeats * len(self.sweep.modes) * len(self.sweep.directions)


@dataclass(frozen=True)
class CheckCluster(Ranked):
    """The preflight: the placement, transport and fabric of a run to come, without the run."""

    scheduler: SchedulerConfig  # only its pool, which memory must hold
    transport: TransportConfig
    fabric: FabricConfig
    check: CheckConfig

    def __post_init__(self) -> None:
        self.transport.check(self.fabric, placement_needs(self.placement))

    @property
    def pool_bytes(self) -> int:
        """The KV pool of one worker."""
        tokens = self.scheduler.num_kv_blocks * self.scheduler.block_size
        return tokens * resolve_spec(self.model).kv_bytes_per_token()
