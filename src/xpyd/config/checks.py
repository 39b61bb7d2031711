"""Settings that contradict each other, in more than one experiment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from xpyd.model.shard import Member
from xpyd.model.spec import ModelSpec
from xpyd.placement import Division, Kind, PlacementConfig
from xpyd.saturation_search import SaturationSearch
from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker.sweeps import ContentionSweep, InterferenceSweep
from xpyd.workload.config import WorkloadConfig


def check_divisions(divisions: Iterable[Division], spec: ModelSpec) -> None:
    """Raises ValueError where the model does not divide among the ranks of an instance."""
    for division in divisions:
        Member(0, division).of(spec)


def check_kinds(placement: PlacementConfig, kinds: tuple[Kind, ...], why: str) -> None:
    """Raises ValueError for instances that divide their work otherwise."""
    if any(division.width > 1 and division.kind not in kinds for division in placement.divisions):
        raise ValueError(f"placement.{placement.widths}: {why}; set these widths to 1, or others")


def check_cache(scheduler: SchedulerConfig, placement: PlacementConfig) -> None:
    """Raises ValueError where the prefix cache or its host tier does not know this kind of instance."""
    if scheduler.prefix_cache:
        check_kinds(placement, ("tp", "ep"), "scheduler.prefix_cache=true knows instances that divide heads only")
    widest = max(division.width for division in placement.divisions)
    tiers = f"scheduler.num_host_blocks={scheduler.num_host_blocks}, num_remote_blocks={scheduler.num_remote_blocks}"
    if (scheduler.num_host_blocks or scheduler.num_remote_blocks) and widest > 1:
        raise ValueError(
            f"{tiers} with placement {placement.name}: only instances of one rank have lower tiers; set both to 0, or "
            "all widths to 1, colocated_tp too"
        )
    if scheduler.num_remote_blocks and max(placement.num_prefill, placement.num_colocated) < 2:
        raise ValueError(
            f"{tiers} with placement {placement.name}: the remote pool is shared by workers that compute prompts, and "
            "there is one; set scheduler.num_remote_blocks=0 or choose a placement with two, such as placement=2c"
        )


def check_has_rate(experiment: str, workload: WorkloadConfig) -> None:
    if workload.arrival is None or workload.arrival.rate_rps is None:
        raise ValueError(
            f"workload.arrival={workload.arrival}: {experiment} sets the rate of arrivals, and needs a process that "
            "has one; set workload.arrival.kind=poisson and a rate_rps"
        )


def at_rate(workload: WorkloadConfig, search: SaturationSearch, rate_rps: float) -> WorkloadConfig:
    """The workload with arrivals at this rate, for as long as the search asks."""
    assert workload.arrival is not None
    num_requests = search.num_requests(rate_rps, workload.num_requests)
    return replace(workload, num_requests=num_requests, arrival=replace(workload.arrival, rate_rps=rate_rps))


def check_pool(pool: SchedulerConfig, sweep: InterferenceSweep | ContentionSweep, keys: str) -> None:
    needed = sweep.num_blocks(pool.block_size)
    if needed > pool.num_kv_blocks:
        raise ValueError(
            f"scheduler.num_kv_blocks={pool.num_kv_blocks}: the sweep's largest point needs {needed}; raise it, or "
            f"shorten {keys}"
        )
