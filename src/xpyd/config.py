"""The typed schema of every experiment, and its validation: Hydra composes, this module refuses.

A typo, a wrong type, an out-of-range value or two settings that contradict each other fail here, before any rank
starts, with the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from annotated_types import Gt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from xpyd.colocated_search import ColocatedSearch
from xpyd.economics.prices import PriceConfig
from xpyd.economics.sweep import EconomicsConfig
from xpyd.economics.verdict import MIN_BLOCK_PAIRS
from xpyd.faults import FaultConfig
from xpyd.hybrid import HybridConfig
from xpyd.model.checkpoint_config import resolve_spec, runnable_spec
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.shard import Member
from xpyd.model.spec import ModelSpec
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.parity import Arm, check_parity
from xpyd.placement import Division, PlacementConfig
from xpyd.plan_search import PlanConfig, candidates
from xpyd.preflight.options import CheckConfig
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
from xpyd.rival import RivalConfig, fingerprint
from xpyd.router import RouterConfig
from xpyd.saturation_search import SaturationSearch
from xpyd.scheduler.base import SchedulerConfig
from xpyd.simulate.config import MachineConfig, SimulateConfig
from xpyd.slurm import SlurmConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import Need, TransportConfig, placement_needs
from xpyd.worker.kv_sweep import KvCacheSweep
from xpyd.worker.prompts import place_prompts
from xpyd.worker.search import TuneSearch
from xpyd.worker.sweeps import (
    CodecSweep,
    ContentionSweep,
    ExpertSweep,
    HandoffSweep,
    InterferenceSweep,
    ScalingSweep,
    WireSweep,
)
from xpyd.worker.transfer_config import TransferConfig
from xpyd.workload.config import WorkloadConfig
from xpyd.workload.slo import SloConfig


class ConfigError(ValueError):
    """A configuration that cannot run; the message lists every problem with its key."""


@dataclass(frozen=True)
class RunConfig:
    """Where results go and how long a run may take."""

    root: str = "runs"
    name: str | None = None  # default: the time with microseconds, or where runs resume a digest of the configuration
    resume: bool | None = None  # skip a finished run, go on with a partial one; default: only with launch=slurm
    drain_timeout_s: Annotated[float, Gt(0)] = 60.0  # without any sign of life at the end of a block
    report: bool = True  # print the ledger and write report.html at the end


@dataclass(frozen=True)
class LaunchConfig:
    """How ranks are started when the command line runs outside MPI."""

    kind: Literal["local", "mpirun", "srun", "slurm"] = "local"
    mpirun: str = "mpirun"  # the program; with `local` the one beside this Python wins
    args: tuple[str, ...] = ()  # more options for it, for srun or for sbatch, such as --hostfile
    timeout_s: Annotated[float, Gt(0)] = 3600.0  # not with slurm: the job has a time limit
    dry_run: bool = False  # validate, print the command that would start the ranks, and stop
    wait: bool = False  # slurm: follow the jobs to their end
    slurm: SlurmConfig = field(default_factory=SlurmConfig)

    def __post_init__(self) -> None:
        if self.kind != "slurm" and (self.wait or self.slurm != SlurmConfig()):
            raise ValueError(
                f"kind={self.kind!r} beside wait={self.wait}, slurm={self.slurm}: wait and slurm are read with "
                "launch=slurm only; choose that or leave them out"
            )


@dataclass(frozen=True)
class Experiment:
    """What every experiment has."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    experiment: str
    model: ModelSpec
    run: RunConfig

    @property
    def world_size(self) -> int:
        """MPI ranks this experiment needs; 0: it runs in the calling process."""
        return 0

    @property
    def planned_blocks(self) -> int:
        """Comparison blocks from begin to end, by which a run is resumed; 0: it has none and starts over."""
        return 0


@dataclass(frozen=True)
class Economics(Experiment):
    economics: EconomicsConfig


@dataclass(frozen=True)
class Codecs(Experiment):
    """Runs in the calling process: both ends of a codec are timed there, the wire between them is modeled."""

    sweep: CodecSweep

    def __post_init__(self) -> None:
        spec = runnable_spec(self.model)
        if self.sweep.max_tokens > spec.max_position_embeddings:
            raise ValueError(
                f"sweep.input_lens up to {max(self.sweep.input_lens)} and sweep.output_len={self.sweep.output_len} "
                f"make {self.sweep.max_tokens} tokens, model {spec.name} knows positions up to "
                f"max_position_embeddings={spec.max_position_embeddings}; shorten one of them"
            )
        place_prompts(self.sweep, spec.vocab_size)  # a file of prompts that cannot be used is refused here


@dataclass(frozen=True)
class Ranked(Experiment):
    """An experiment that runs on ranks."""

    placement: PlacementConfig
    launch: LaunchConfig

    @property
    def world_size(self) -> int:
        return self.placement.world_size


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
class Interference(Ranked):
    scheduler: SchedulerConfig  # only its pool: block_size and num_kv_blocks
    sweep: InterferenceSweep

    def __post_init__(self) -> None:
        _check_tensor_parallel(self.placement, "interference runs prompts beside decodes on one instance")
        _check_divisions(self.placement.divisions, runnable_spec(self.model))
        _check_pool(self.scheduler, self.sweep, "sweep.context_len, sweep.num_decode_seqs or sweep.chunk_tokens")


@dataclass(frozen=True)
class Scaling(Ranked):
    sweep: ScalingSweep

    def __post_init__(self) -> None:
        ranks = self.placement.num_workers
        _check_divisions({way.division for way in self.sweep.ways}, runnable_spec(self.model))
        if ranks != max(self.sweep.widths):
            raise ValueError(
                f"sweep.widths up to {max(self.sweep.widths)} with {ranks} worker ranks: set placement=1c and "
                f"placement.colocated_tp={max(self.sweep.widths)}"
            )


@dataclass(frozen=True)
class ExpertParallel(Ranked):
    sweep: ExpertSweep

    def __post_init__(self) -> None:
        ranks, widest = self.placement.num_workers, max(self.sweep.widths)
        runnable_spec(self.model).check_expert_parallel(widest)
        if ranks != widest:
            raise ValueError(
                f"sweep.widths up to {widest} with {ranks} worker ranks: set placement=1c and "
                f"placement.colocated_tp={widest}"
            )
        words = self.sweep.num_domains * self.sweep.words_per_domain
        if words > runnable_spec(self.model).vocab_size:
            raise ValueError(
                f"sweep.num_domains={self.sweep.num_domains} x words_per_domain={self.sweep.words_per_domain} exceeds "
                f"model.vocab_size={runnable_spec(self.model).vocab_size}; lower one of the first two"
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
        _check_pool(self.scheduler, self.sweep, "sweep.prompt_tokens, sweep.num_decode_seqs or sweep.prefill_tokens")


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
        _check_divisions(self.placement.divisions, spec)
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


def _check_divisions(divisions: Iterable[Division], spec: ModelSpec) -> None:
    """Raises ValueError where the model does not divide among the ranks of an instance."""
    for division in divisions:
        Member(0, division).of(spec)


def _check_tensor_parallel(placement: PlacementConfig, why: str) -> None:
    """Raises ValueError for instances of stages, or that divide a prompt's tokens."""
    if placement.prefill_cp > 1 or placement.decode_pp > 1:
        raise ValueError(
            f"placement.prefill_cp={placement.prefill_cp}, decode_pp={placement.decode_pp}: {why}; set both to 1"
        )


def _check_cache(scheduler: SchedulerConfig, placement: PlacementConfig) -> None:
    """Raises ValueError where the prefix cache or its host tier does not know this kind of instance."""
    if scheduler.prefix_cache:
        _check_tensor_parallel(placement, "scheduler.prefix_cache=true knows instances of tensor-parallel ranks only")
    widest = max(division.width for division in placement.divisions)
    tiers = f"scheduler.num_host_blocks={scheduler.num_host_blocks}, num_remote_blocks={scheduler.num_remote_blocks}"
    if (scheduler.num_host_blocks or scheduler.num_remote_blocks) and widest > 1:
        raise ValueError(
            f"{tiers} with placement {placement.name}: only instances of one rank have lower tiers; set both to 0, or "
            "prefill_tp=1, decode_tp=1 and colocated_tp=1"
        )
    if scheduler.num_remote_blocks and max(placement.num_prefill, placement.num_colocated) < 2:
        raise ValueError(
            f"{tiers} with placement {placement.name}: the remote pool is shared by workers that compute prompts, and "
            "there is one; set scheduler.num_remote_blocks=0 or choose a placement with two, such as placement=2c"
        )


def _check_has_rate(experiment: str, workload: WorkloadConfig) -> None:
    if workload.arrival is None or workload.arrival.rate_rps is None:
        raise ValueError(
            f"workload.arrival={workload.arrival}: {experiment} sets the rate of arrivals, and needs a process that "
            "has one; set workload.arrival.kind=poisson and a rate_rps"
        )


def _at_rate(workload: WorkloadConfig, search: SaturationSearch, rate_rps: float) -> WorkloadConfig:
    """The workload with arrivals at this rate, for as long as the search asks."""
    assert workload.arrival is not None
    num_requests = search.num_requests(rate_rps, workload.num_requests)
    return replace(workload, num_requests=num_requests, arrival=replace(workload.arrival, rate_rps=rate_rps))


def _check_pool(pool: SchedulerConfig, sweep: InterferenceSweep | ContentionSweep, keys: str) -> None:
    needed = sweep.num_blocks(pool.block_size)
    if needed > pool.num_kv_blocks:
        raise ValueError(
            f"scheduler.num_kv_blocks={pool.num_kv_blocks}: the sweep's largest point needs {needed}; raise it, or "
            f"shorten {keys}"
        )


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
        _check_divisions(self.placement.divisions, spec)
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
        several = self.placement.several_ranks or (self.placement.colocated_tp or 1) > 1
        self.speculation.check(spec, self.sampling, several)
        self._check_faults()

    def _check_tiers(self, scheduler: SchedulerConfig) -> None:
        _check_cache(scheduler, self.placement)
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
    """Step times and link of the user's own ranks, alone; of the workload nothing is played."""

    num_rounds: Annotated[int, Gt(0)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement.num_colocated or self.placement.several_ranks or (self.placement.colocated_tp or 1) > 1:
            raise ValueError(
                f"placement {self.placement.name}: calibrate times single ranks and the link between two pools; choose "
                "xPyD with prefill_tp=1 and decode_tp=1, such as placement=1p1d"
            )

    @property
    def planned_blocks(self) -> int:
        return 0


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
        if self.placement.several_ranks or (self.placement.colocated_tp or 1) > 1:
            raise ValueError(
                f"{asked} with placement {self.placement.name}: its costs are reckoned for instances of one rank; "
                "choose widths of 1, or hybrid=off"
            )
        if self.scheduler.num_remote_blocks:
            raise ValueError(
                f"{asked} with scheduler.num_remote_blocks={self.scheduler.num_remote_blocks}: hybrid ranks lend no "
                "memory; set it to 0, or choose hybrid=off"
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
        _check_has_rate(self.experiment, self.workload)
        if self.null_control:
            raise ValueError("null_control=true: saturation plays each arm once at a rate; leave it out")
        self.workload_at(self.search.max_rps).check(self.search.num_repeats)

    def workload_at(self, rate_rps: float) -> WorkloadConfig:
        """The workload of a block with arrivals at this rate."""
        return _at_rate(self.workload, self.search, rate_rps)

    @property
    def planned_blocks(self) -> int:
        return 0


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
        _check_tensor_parallel(self.placement, "only tensor-parallel instances are simulated")
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
        _check_divisions(self.placement.divisions, spec)
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
        _check_has_rate(self.experiment, self.workload)
        spec = resolve_spec(self.model)
        _check_divisions({Division("tp", width) for width in self.plan.widths}, spec)
        candidates(self.plan, spec.num_params() * spec.dtype_bytes)
        self.workload_at(self.search.max_rps).check(self.search.num_repeats)

    def workload_at(self, rate_rps: float) -> WorkloadConfig:
        """The workload of a block with arrivals at this rate."""
        return _at_rate(self.workload, self.search, rate_rps)


SCHEMAS: dict[str, type[Experiment]] = {
    "economics": Economics,
    "simulate": Simulate,
    "plan": Plan,
    "codecs": Codecs,
    "transfer": Transfer,
    "tune": Tune,
    "tune_colocated": TuneColocated,
    "interference": Interference,
    "contention": Contention,
    "scaling": Scaling,
    "expert_parallel": ExpertParallel,
    "check_cluster": CheckCluster,
    "handoff": Handoff,
    "kv_cache": KvCache,
    "serve": Serve,
    "calibrate": Calibrate,
    "compare": Compare,
    "speculation": Speculation,
    "saturation": Saturation,
}


def load_config(composed: Mapping[str, Any]) -> Experiment:
    """Validate a composed configuration into the dataclass of its experiment. Raises ConfigError."""
    name = composed.get("experiment")
    if not isinstance(name, str) or name not in SCHEMAS:
        raise ConfigError(f"experiment={name!r}: allowed are {', '.join(SCHEMAS)}")
    try:
        return TypeAdapter(SCHEMAS[name]).validate_python(dict(composed))
    except ValidationError as error:
        problems = [_explain(problem, SCHEMAS[name]) for problem in error.errors()]
        raise ConfigError("\n".join(problems)) from None


def dump_config(config: Experiment) -> dict[str, Any]:
    """The configuration as plain nested dicts and lists, as frozen into the run folder."""
    dumped: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return dumped


def _explain(problem: Any, schema: type) -> str:
    """One pydantic error as ``key=value: what is wrong``, with the allowed keys where the key is unknown."""
    key = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "unexpected_keyword_argument":
        allowed = allowed_keys(schema, problem["loc"][:-1])
        return f"{key}={problem['input']!r}: no such key; {suggest(str(problem['loc'][-1]), allowed)}"
    if problem["type"] == "missing":
        return f"{key}: required, but not set"
    if isinstance(problem["input"], dict):  # a cross-field check: its message names keys and values itself
        return f"{key}: {message}" if key else message
    return f"{key}={problem['input']!r}: {message}"


def allowed_keys(schema: Any, path: tuple[Any, ...]) -> list[str]:
    """The keys of the dataclass at ``path`` inside ``schema``; empty where there is none (a free mapping)."""
    for part in path:
        if isinstance(part, int):
            continue
        schema = _dataclass_in(get_type_hints(schema).get(str(part))) if is_dataclass(schema) else None
    return [f.name for f in fields(schema)] if is_dataclass(schema) else []


def suggest(wrong: str, allowed: list[str]) -> str:
    """``did you mean X?`` where something is near, and all that is allowed."""
    near = difflib.get_close_matches(wrong, allowed, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}allowed: {', '.join(sorted(allowed)) or 'none'}"


def _dataclass_in(hint: Any) -> Any:
    """The dataclass named by a type hint, also inside ``X | None`` and ``tuple[X, ...]``."""
    if is_dataclass(hint):
        return hint
    return next((found for inner in getattr(hint, "__args__", ()) if (found := _dataclass_in(inner))), None)
