"""Schemas of the experiments without ranks: closed form and simulated time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Gt

from xpyd.break_even_grid import BreakEvenConfig
from xpyd.config.base import Experiment
from xpyd.config.checks import at_rate, check_divisions, check_has_rate, check_kinds
from xpyd.economics.prices import PriceConfig
from xpyd.economics.sweep import EconomicsConfig
from xpyd.economics.verdict import MIN_BLOCK_PAIRS
from xpyd.faults import FaultConfig
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.placement import Division, PlacementConfig
from xpyd.plan_search import PlanConfig, candidates
from xpyd.router import RouterConfig
from xpyd.saturation_search import SaturationSearch
from xpyd.scheduler.config import SchedulerConfig
from xpyd.simulate.config import MachineConfig, SimulateConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.worker.transfer_config import TransferConfig
from xpyd.workload.config import WorkloadConfig
from xpyd.workload.slo import SloConfig


@dataclass(frozen=True)
class Economics(Experiment):
    economics: EconomicsConfig


@dataclass(frozen=True)
class SimulatedTransport:
    """There is none; tables name it."""

    name: Literal["simulated"] = "simulated"


@dataclass(frozen=True)
class Simulate(Experiment):
    """Runs in the calling process: a compare or serve run in simulated time."""

    placement: PlacementConfig
    scheduler: SchedulerConfig
    transfer: TransferConfig
    fabric: FabricConfig
    workload: WorkloadConfig
    slo: SloConfig
    simulate: SimulateConfig
    machine: MachineConfig
    num_pairs: Annotated[int, Gt(0)] = MIN_BLOCK_PAIRS
    faults: FaultConfig = field(default_factory=FaultConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    transport: SimulatedTransport = field(default_factory=SimulatedTransport)

    def __post_init__(self) -> None:
        spec = resolve_spec(self.model)
        check_kinds(self.placement, ("tp",), "only tensor-parallel instances are simulated")
        if self.router.sees_kv:
            raise ValueError(
                f"router.policy={self.router.policy}: where KV is is not simulated; choose router=least_outstanding or "
                "router=round_robin"
            )
        if self.scheduler.prefix_cache:
            raise ValueError(
                "scheduler.prefix_cache=true: simulated prompts have lengths and no tokens, so that none is found "
                "again; set scheduler.prefix_cache=false"
            )
        check_divisions(self.placement.divisions, spec)
        self.transfer.check(self.scheduler, spec.block_bytes(self.scheduler.block_size))
        if self.transfer.staging != "off":
            raise ValueError(
                f"transfer.staging={self.transfer.staging}: staging and codecs are not simulated; set "
                "transfer.staging=off and codec=none"
            )
        if self.simulate.arms == "compare" and self.placement.num_colocated:
            raise ValueError(
                f"placement.num_colocated={self.placement.num_colocated} with simulate.arms=compare: it derives the "
                "colocated arm itself; choose xPyD, such as placement=1p1d, or simulate.arms=serve"
            )
        if self.simulate.outages and not self.faults.goes_on:
            raise ValueError(
                f"simulate.outages with faults.policy={self.faults.policy}: the run would end there; choose "
                "faults=retry or faults=go_on"
            )
        for outage in self.simulate.outages:
            if outage.to_s <= outage.from_s + self.faults.detect_s:
                raise ValueError(
                    f"simulate.outages: from_s={outage.from_s} to_s={outage.to_s} is over before it is noticed, "
                    f"faults.detect_s={self.faults.detect_s}; make it longer or lower the latter"
                )
        self.workload.check(self.num_pairs if self.simulate.num_requests is None else 1)


@dataclass(frozen=True)
class Plan(Simulate):
    """Runs in the calling process: many placements in simulated time, so that ``placement`` itself is not read."""

    plan: PlanConfig = field(kw_only=True)
    search: SaturationSearch = field(kw_only=True)
    prices: PriceConfig = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_has_rate(self.experiment, self.workload)
        spec = resolve_spec(self.model)
        check_divisions({Division("tp", width) for width in self.plan.widths}, spec)
        candidates(self.plan, spec.num_params() * spec.dtype_bytes)
        if self.plan.hybrid and self.scheduler.policy == "static":
            raise ValueError(
                "plan.hybrid=true with scheduler.policy=static: the policy reckons without the wait for a batch to "
                "end; choose scheduler=chunked or scheduler=prefill_first, or plan.hybrid=false"
            )
        if self.plan.hybrid and self.simulate.outages:
            raise ValueError(
                "plan.hybrid=true with simulate.outages: the policy is not told of instances that are down; leave "
                "either out"
            )
        self.workload_at(self.search.max_rps).check(self.search.num_repeats)

    def workload_at(self, rate_rps: float) -> WorkloadConfig:
        """The workload of a block with arrivals at this rate."""
        return at_rate(self.workload, self.search, rate_rps)


@dataclass(frozen=True)
class BreakEven(Simulate):
    """Runs in the calling process: a paired comparison in simulated time for every cell of a map."""

    break_even: BreakEvenConfig = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_has_rate(self.experiment, self.workload)
        if self.workload.trace is not None:
            raise ValueError(
                f"workload.trace.path={self.workload.trace.path}: break_even sets the lengths of every cell; choose a "
                "workload without a trace, such as workload=chat_docs"
            )
        if self.simulate.arms != "compare" or self.simulate.num_requests is not None:
            raise ValueError(
                f"simulate.arms={self.simulate.arms}, simulate.num_requests={self.simulate.num_requests}: break_even "
                "plays both arms of every pair, with workload.num_requests each; leave both out"
            )
        if self.num_pairs < MIN_BLOCK_PAIRS:
            raise ValueError(
                f"num_pairs={self.num_pairs}: every cell would be undecided; give at least {MIN_BLOCK_PAIRS}"
            )
        longest = max(self.break_even.input_lens) + max(self.break_even.output_lens)
        capacity = self.scheduler.num_kv_blocks * self.scheduler.block_size
        if longest > capacity:
            raise ValueError(
                f"scheduler.num_kv_blocks={self.scheduler.num_kv_blocks} x block_size={self.scheduler.block_size} "
                f"holds {capacity} tokens, but the longest request of the map has {longest}; raise "
                f"scheduler.num_kv_blocks to {-(-longest // self.scheduler.block_size)} or shorten "
                "break_even.input_lens or output_lens"
            )

    def workload_at(self, output_len: int, rate_rps: float, input_len: int) -> WorkloadConfig:
        """The workload of a cell: all requests alike, at its rate."""
        assert self.workload.arrival is not None
        arrival = replace(self.workload.arrival, rate_rps=rate_rps)
        return replace(self.workload, arrival=arrival, input_len=input_len, output_len=output_len)
