"""What the launcher believes: how many tasks it started. Read before MPI is, since a wrong PMI shows only here.

N tasks without a common PMI are N worlds of one rank, and each would run the whole job alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xpyd.preflight.finding import Finding, Level, Topic

# (launcher, variable of the number of tasks, variable of this one's number); the first that is set speaks. A batch
# script has SLURM_PROCID but is no step, and a step's number of tasks is not the job's.
LAUNCHERS = (
    ("mpirun of Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("srun --mpi=pmi2, or MPICH's mpirun,", "PMI_SIZE", "PMI_RANK"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Launched:
    launcher: str
    num_tasks: int
    task: int  # this one


def launched(environ: Mapping[str, str]) -> Launched | None:
    """What the environment says of the launcher; None where none has started this process."""
    for launcher, size, rank in LAUNCHERS:
        if size in environ and rank in environ:
            return Launched(launcher, int(environ[size]), int(environ[rank]))
    return None


def judge_worlds(found: Launched | None, world_size: int | None, library: str) -> Finding | None:
    """The finding where tasks do not see each other; None where all is well.

    ``world_size``: ranks of MPI's world; None where the launcher offers no PMI at all. ``library``: the MPI library.
    """
    if found is None or found.num_tasks == 1 or (world_size is not None and world_size > 1):
        return None
    saw = "offers them no PMI" if world_size is None else f"each sees a world of 1 ({library})"
    return Finding(
        Topic.MPI,
        "PMI mismatch",
        Level.ERROR,
        f"{found.num_tasks} worlds of one rank: {found.launcher} started {found.num_tasks} tasks, but {saw}",
        "srun --mpi=pmix for Open MPI, --mpi=pmi2 for MPICH (srun --mpi=list shows what there is; sbatch: "
        "XPYD_SRUN_MPI=...; launch=srun: 'launch.args=[\"--mpi=...\"]'); or the mpirun of the MPI library itself",
    )
