"""Schemas of the experiments that play a workload on one placement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt

from xpyd.colocated_search import ColocatedSearch
from xpyd.config.base import Ranked
from xpyd.config.checks import check_cache, check_divisions
from xpyd.faults import FaultConfig
from xpyd.model.checkpoint_config import runnable_spec
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.rival import fingerprint
from xpyd.router import RouterConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import Need, TransportConfig, placement_needs
from xpyd.worker.kv_sweep import KvCacheSweep
from xpyd.worker.transfer_config import TransferConfig
from xpyd.workload.config import WorkloadConfig
from xpyd.workload.slo import SloConfig


@dataclass(frozen=True)
class Serve(Ranked):
    """One arm: the placement as it is."""

    scheduler: SchedulerConfig
    transport: TransportConfig
    transfer: TransferConfig
    fabric: FabricConfig
    workload: WorkloadConfig
    slo: SloConfig
    num_blocks: Annotated[int, Gt(0)] = 1
    faults: FaultConfig = field(default_factory=FaultConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    speculation: SpeculationConfig = field(default_factory=SpeculationConfig)

    def __post_init__(self) -> None:
        moves = not self.placement.num_colocated
        self.transport.check(self.fabric, [*placement_needs(self.placement), *self.transfer.needs()] if moves else [])
        spec = runnable_spec(self.model)
        check_divisions(self.placement.divisions, spec)
        self._check_tiers(self.scheduler)
        self.transfer.check_widths(self.placement, spec.num_kv_heads)
        self.transfer.check(self.scheduler, spec.block_bytes(self.scheduler.block_size))
        capacity = self.scheduler.num_kv_blocks * self.scheduler.block_size
        longest = self.workload.max_tokens()
        if longest > capacity:
            raise ValueError(
                f"scheduler.num_kv_blocks={self.scheduler.num_kv_blocks} x block_size={self.scheduler.block_size} "
                f"holds {capacity} tokens, but the longest request of the workload has {longest}; raise "
                f"scheduler.num_kv_blocks to {-(-longest // self.scheduler.block_size)} or shorten the workload"
            )
        if longest > spec.max_position_embeddings:
            raise ValueError(
                f"the longest request of the workload has {longest} tokens, model {spec.name} knows positions up to "
                f"max_position_embeddings={spec.max_position_embeddings}; shorten workload lengths or raise it"
            )
        self.workload.check(self.num_blocks)
        self.speculation.check(spec, self.sampling, several_ranks=not self.placement.alone)
        self._check_faults()

    def _check_tiers(self, scheduler: SchedulerConfig) -> None:
        check_cache(scheduler, self.placement)
        if not scheduler.num_remote_blocks:
            return
        asked = f"scheduler.num_remote_blocks={scheduler.num_remote_blocks}"
        self.transport.check(self.fabric, [Need(asked, ("two_sided",), "scheduler.num_remote_blocks=0")])
        if self.faults.goes_on:
            raise ValueError(
                f"{asked} with faults.policy={self.faults.policy}: the remote pool does not outlive a lost rank; "
                "choose faults=end or scheduler.num_remote_blocks=0"
            )

    def _check_faults(self) -> None:
        asked = f"faults.policy={self.faults.policy}, faults.request_timeout_s={self.faults.request_timeout_s}"
        undoes = self.faults.goes_on or self.faults.request_timeout_s is not None
        if undoes and self.placement.several_ranks:
            raise ValueError(
                f"{asked} with placement.{self.placement.widths}: a hand-off between instances of several ranks cannot "
                "be undone; choose faults=end without a timeout"
            )
        if self.faults.goes_on and self.transfer.staging != "off" and not self.transport.capabilities.peer_errors:
            raise ValueError(
                f"faults.policy={self.faults.policy} with transfer.staging={self.transfer.staging} over "
                f"transport.name={self.transport.name}: it cannot take back what it sends to a lost rank, and so never "
                "gets its staging memory back; set transfer.staging=off or choose transport=ucx"
            )

    @property
    def planned_blocks(self) -> int:
        return self.num_blocks

    def least_s(self, num_done: int) -> float:
        return (self.planned_blocks - num_done) * self.workload.arrivals_s

    @property
    def colocated_fingerprint(self) -> dict[str, str]:
        """What the settings of a colocated rival are tuned on."""
        return fingerprint(self.model, self.placement, self.scheduler, self.workload, self.slo, self.speculation)


@dataclass(frozen=True)
class KvCache(Serve):
    """Policies and tiers of the KV cache on the same requests; ``scheduler`` gives all that is not of the cache."""

    sweep: KvCacheSweep = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheduler.prefix_cache or self.num_blocks != 1:
            raise ValueError(
                f"scheduler.prefix_cache={self.scheduler.prefix_cache}, num_blocks={self.num_blocks}: the sweep sets "
                "the cache, and counts its own blocks; leave both out"
            )
        self._check_tiers(self.sweep.largest(self.scheduler))
        self.workload.check(self.sweep.num_repeats)

    @property
    def planned_blocks(self) -> int:
        return self.sweep.num_repeats * len(self.sweep.arms(self.scheduler))


@dataclass(frozen=True)
class TuneColocated(Serve):
    """Scheduler settings of the colocated arm that ``compare`` makes of the same options, alone."""

    search: ColocatedSearch = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_blocks != 1 or self.faults.goes_on:
            raise ValueError(
                f"num_blocks={self.num_blocks}, faults.policy={self.faults.policy}: the search counts its own blocks, "
                "and compares equal numbers of ranks; leave num_blocks out and choose faults=end"
            )
        others = len(self.search.candidates(self.scheduler)) - 1
        self.workload.check(self.search.total_repeats(others))

    @property
    def planned_blocks(self) -> int:
        return 0


@dataclass(frozen=True)
class Calibrate(Serve):
    """Step times and link of the user's own ranks; of the workload nothing is played, blocks are calibration's own.

    ``pool``: run folders of earlier calibrations of the same, whose points are fitted together with the new ones.
    """

    num_rounds: Annotated[int, Gt(0)] = 3
    pool: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement.num_colocated or not self.placement.alone:
            raise ValueError(
                f"placement {self.placement.name}: calibrate times single ranks and the link between two pools; choose "
                "xPyD with widths of 1, such as placement=1p1d"
            )

    @property
    def planned_blocks(self) -> int:
        return 0
