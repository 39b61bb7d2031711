"""Schema of the experiment that plays every way of a frozen plan on real ranks."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from xpyd.config.checks import at_rate, check_has_rate
from xpyd.config.serve import Serve
from xpyd.economics.prices import PriceConfig
from xpyd.model.checkpoint_config import runnable_spec
from xpyd.plan_search import Candidate, PlanConfig, candidates
from xpyd.saturation_search import SaturationSearch
from xpyd.workload.config import WorkloadConfig


@dataclass(frozen=True)
class RegretConfig:
    """``plan``: the run folder of ``experiments.plan``, or its plan.json; its ``sha256`` is filled in."""

    plan: str
    sha256: str


@dataclass(frozen=True)
class Regret(Serve):
    """Every way of a plan, each in a session of its own; ``placement`` gives the number of ranks and how they run."""

    regret: RegretConfig = field(kw_only=True)
    plan: PlanConfig = field(kw_only=True)
    search: SaturationSearch = field(kw_only=True)
    prices: PriceConfig = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.faults.goes_on:
            raise ValueError(
                f"faults.policy={self.faults.policy}: without a rank the ways are no longer equal; choose faults=end"
            )
        if self.num_blocks != 1 or self.speculation.on:
            raise ValueError(
                f"num_blocks={self.num_blocks}, speculation.draft={self.speculation.draft}: the search counts its own "
                "blocks, and no plan knows of guesses; leave both out"
            )
        check_has_rate(self.experiment, self.workload)
        self.workload_at(self.search.max_rps).check(self.search.num_repeats)
        for way in self.ways:
            self.serve(way)  # with every check of a run on its placement

    @property
    def ways(self) -> list[Candidate]:
        """The plan's ways that real ranks can play: an assumed codec is none that they have."""
        spec = runnable_spec(self.model)
        found = candidates(self.plan, spec.num_params() * spec.dtype_bytes)
        return [way for way in found if way.codec is None]

    def serve(self, way: Candidate) -> Serve:
        """What a session of this way reads."""
        ours, spread = self.placement, not way.placement.alone
        placement = replace(
            way.placement,
            allow_shared_node=ours.allow_shared_node,
            pin_cores=ours.pin_cores,
            collectives=ours.collectives if spread else "auto",
        )
        own: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Serve)}
        transfer = replace(self.transfer, mode=way.mode) if way.mode else self.transfer
        if placement.prefill_tp != placement.decode_tp:  # a rank takes its own heads alone, which must lie together
            transfer = replace(transfer, block_order="heads_first")
        return Serve(**{**own, "placement": placement, "transfer": transfer})

    def workload_at(self, rate_rps: float) -> WorkloadConfig:
        """The workload of a block with arrivals at this rate."""
        return at_rate(self.workload, self.search, rate_rps)

    @property
    def planned_blocks(self) -> int:
        return 0
