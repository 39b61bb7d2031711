"""What every experiment's schema has: where results go, how ranks are started, and the error of a bad one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt
from pydantic import ConfigDict

from xpyd.model.spec import ModelSpec
from xpyd.placement import PlacementConfig
from xpyd.slurm import SlurmConfig


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

    def __post_init__(self) -> None:
        if not self.root.strip() or not self.root.isprintable() or self.root.startswith("~"):
            raise ValueError(
                f"root={self.root!r}: must be a folder's path without control characters; for one in your home write "
                "run.root=$HOME/..."
            )
        if self.name is not None and (
            self.name.strip() in ("", ".", "..") or "/" in self.name or not self.name.isprintable()
        ):
            raise ValueError(
                f"name={self.name!r}: must be one folder's name, without / and control characters; where the folder "
                "goes is run.root"
            )


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
        """Comparison blocks from begin to end, by which a run is resumed; 0: none, or known only when it ends."""
        return 0


@dataclass(frozen=True)
class Ranked(Experiment):
    """An experiment that runs on ranks."""

    placement: PlacementConfig
    launch: LaunchConfig

    @property
    def world_size(self) -> int:
        return self.placement.world_size

    def least_s(self, num_done: int) -> float:
        """Seconds that the blocks behind ``num_done`` take by their arrivals alone, on average; 0: unknown."""
        return 0.0
