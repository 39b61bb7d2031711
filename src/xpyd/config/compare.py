"""Schemas of the experiments that play several arms in pairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Gt

from xpyd.config.checks import at_rate, check_has_rate
from xpyd.config.serve import Serve
from xpyd.economics.prices import PriceConfig
from xpyd.economics.verdict import MIN_BLOCK_PAIRS
from xpyd.hybrid import HybridConfig
from xpyd.parity import Arm, check_parity
from xpyd.records import (
    COLOCATED,
    COLOCATED_SPECULATIVE,
    COLOCATED_TUNED,
    DISAGGREGATED,
    DISAGGREGATED_SPECULATIVE,
    HYBRID,
    NULL,
    SPLIT_ARMS,
)
from xpyd.rival import RivalConfig
from xpyd.saturation_search import SaturationSearch
from xpyd.scheduler.config import SchedulerConfig
from xpyd.workload.config import WorkloadConfig


@dataclass(frozen=True)
class Compare(Serve):
    """Both arms, paired. The colocated arm has as many workers as the placement."""

    num_pairs: Annotated[int, Gt(0)] = MIN_BLOCK_PAIRS
    null_control: bool = True  # play every pair's requests once more colocated: the A/A interval
    rival: RivalConfig = field(default_factory=RivalConfig)
    hybrid: HybridConfig = field(default_factory=HybridConfig)  # a third arm

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement.num_colocated:
            raise ValueError(
                f"placement.num_colocated={self.placement.num_colocated}: compare needs xPyD, such as placement=1p1d; "
                "it derives the colocated arm with as many workers itself"
            )
        self.workload.check(self.num_pairs)
        if self.faults.goes_on:
            raise ValueError(
                f"faults.policy={self.faults.policy}: without a rank the arms are no longer equal; compare ends then, "
                "choose faults=end (serve can go on)"
            )
        if self.num_blocks != 1:
            raise ValueError(f"num_blocks={self.num_blocks} is read by serve only; compare counts pairs, set num_pairs")
        self._check_hybrid()
        self.rival.check(self.colocated_fingerprint)
        check_parity({name: self.arm(name) for name in self.arms})

    def _check_hybrid(self) -> None:
        if not self.hybrid.on:
            return
        asked = f"hybrid.policy={self.hybrid.policy}"
        if not self.placement.alone:
            raise ValueError(
                f"{asked} with placement {self.placement.name}: its costs are reckoned for instances of one rank; "
                "choose widths of 1, or hybrid=off"
            )
        if self.scheduler.num_remote_blocks:
            raise ValueError(
                f"{asked} with scheduler.num_remote_blocks={self.scheduler.num_remote_blocks}: hybrid ranks lend no "
                "memory; set it to 0, or choose hybrid=off"
            )
        if "static" in (self.scheduler.policy, self.scheduler_of(HYBRID).policy):
            raise ValueError(
                f"{asked} with scheduler.policy=static: its costs are reckoned without the wait for a batch to end; "
                "choose scheduler=chunked or scheduler=prefill_first, or hybrid=off"
            )
        if self.speculation.on:
            raise ValueError(
                f"{asked} with speculation.draft={self.speculation.draft}: its costs are reckoned for steps of one "
                "token a sequence; choose speculation=none, or hybrid=off"
            )

    @property
    def tuned(self) -> SchedulerConfig | None:
        """The tuned rival's scheduler; None where there is none, or where it is the configured one."""
        return self.rival.scheduler if self.rival.scheduler != self.scheduler else None

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of every pair, in the order of even pairs."""
        tuned = [COLOCATED_TUNED] if self.tuned is not None else []
        hybrid = [HYBRID] if self.hybrid.on else []
        return (COLOCATED, *tuned, DISAGGREGATED, *hybrid, *([NULL] if self.null_control else []))

    def scheduler_of(self, arm: str) -> SchedulerConfig:
        """The scheduler of an arm; the null control repeats the tuned rival where there is one.

        Ranks of the hybrid arm mix prompts and decodes as the colocated ones do, so what was tuned is theirs too.
        """
        return self.tuned or self.scheduler if arm in (COLOCATED_TUNED, HYBRID, NULL) else self.scheduler

    def speculates(self, arm: str) -> bool:
        """Whether an arm uses the configured draft."""
        return True

    def arm(self, name: str) -> Arm:
        """The resources of an arm."""
        moves = name in (*SPLIT_ARMS, HYBRID)
        placement = self.placement if moves else self.placement.colocated()
        codec = self.transfer.codec.name if moves else None
        return Arm(placement, self.model, self.scheduler_of(name), self.sampling, self.speculation, codec)

    @property
    def planned_blocks(self) -> int:
        return self.num_pairs * len(self.arms)


@dataclass(frozen=True)
class Speculation(Compare):
    """Both arms with speculative decoding and without, on the same requests."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.speculation.on:
            raise ValueError(
                f"speculation.draft={self.speculation.draft}: speculation holds guessing against none; choose "
                "speculation=ngram, speculation=layers or speculation=model"
            )
        if self.rival.use == "tuned":
            raise ValueError(
                "rival.use=tuned: speculation plays one colocated scheduler, with and without guessing; set scheduler "
                "to the tuned one and leave rival out"
            )

    @property
    def arms(self) -> tuple[str, ...]:
        null = [NULL] if self.null_control else []
        return COLOCATED, COLOCATED_SPECULATIVE, DISAGGREGATED_SPECULATIVE, DISAGGREGATED, *null

    def speculates(self, arm: str) -> bool:
        return arm in (COLOCATED_SPECULATIVE, DISAGGREGATED_SPECULATIVE)


@dataclass(frozen=True)
class Saturation(Compare):
    """Every arm of a comparison at rising rates of arrivals; ``search`` says which, and ``workload`` gives the rest."""

    null_control: bool = False
    search: SaturationSearch = field(kw_only=True)
    prices: PriceConfig = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_has_rate(self.experiment, self.workload)
        if self.null_control:
            raise ValueError("null_control=true: saturation plays each arm once at a rate; leave it out")
        self.workload_at(self.search.max_rps).check(self.search.num_repeats)

    def workload_at(self, rate_rps: float) -> WorkloadConfig:
        """The workload of a block with arrivals at this rate."""
        return at_rate(self.workload, self.search, rate_rps)

    @property
    def planned_blocks(self) -> int:
        return 0
