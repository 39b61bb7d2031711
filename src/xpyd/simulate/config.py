"""The settings of a simulation: what is kept of it, how fast instances are, and which of them fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from xpyd.economics.roofline import Roofline
from xpyd.units import GIGA

Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class Outage:
    """Instance ``instance`` (of all, prefill first) is down from ``from_s`` to ``to_s`` of each block."""

    instance: Annotated[int, Ge(0)]
    from_s: Annotated[float, Ge(0)]
    to_s: Annotated[float, Gt(0)]

    def __post_init__(self) -> None:
        if self.to_s <= self.from_s:
            raise ValueError(f"to_s={self.to_s} is not after from_s={self.from_s}; an outage ends after it begins")


@dataclass(frozen=True)
class SimulateConfig:
    """``rows``: all tables as a real run has them, those of every ``sample_every`` th request, or sums alone.

    ``arms``: compare plays both arms of every pair, serve the placement as it is. ``num_requests`` of a block, where
    it is more than workload.num_requests: runs of that many requests follow each other, so memory stays flat.
    ``calibration``: a file of ``experiments.calibrate``; without one, step times follow from the model and ``machine``,
    and the link has fabric.rate_gbps. One made with another fabric.rate_gbps has its link taken to this one.
    ``speeds``: of each instance, relative to the step model, repeated in turn.
    ``scatter``: steps are not all as long as the model says, but lie about it as those of the calibration did; slower.
    None: where the calibration says how.
    ``tp_efficiency``: an instance of w ranks is w times this share as fast as one.
    """

    arms: Literal["compare", "serve"] = "compare"
    rows: Literal["all", "sample", "none"] = "all"
    sample_every: Annotated[int, Gt(0)] = 100
    num_requests: Annotated[int, Gt(0)] | None = None
    calibration: str | None = None
    speeds: tuple[Annotated[float, Gt(0)], ...] = ()
    scatter: bool | None = False
    tp_efficiency: Share = 0.9
    outages: tuple[Outage, ...] = ()

    def __post_init__(self) -> None:
        if self.scatter and self.calibration is None:
            raise ValueError("scatter=true without calibration: a data sheet has no scatter; give a calibration file")
        if self.arms == "compare" and self.outages:
            raise ValueError("outages with arms=compare: without an instance the arms are not equal; set arms=serve")


@dataclass(frozen=True)
class MachineConfig:
    """One rank by its data sheet, at plausible shares of it; read where there is no calibration file."""

    peak_flops: Annotated[float, Gt(0)]  # per second, in the model's dtype
    compute_efficiency: Share
    memory_gbytes_s: Annotated[float, Gt(0)]  # decimal bytes per second
    memory_efficiency: Share
    alpha_s: Annotated[float, Ge(0)]  # per transfer
    gamma_s: Annotated[float, Ge(0)]  # per piece

    def build(self) -> Roofline:
        rate = self.memory_gbytes_s * GIGA * self.memory_efficiency
        return Roofline(self.peak_flops * self.compute_efficiency, rate)
