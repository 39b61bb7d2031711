"""Is this cluster ready? Ranks, MPI, UCX, wires, clocks, memory, versions: each finding with its remedy.

python -m experiments.check_cluster placement.allow_shared_node=true
mpirun -n 3 python -m experiments.check_cluster placement=1p1d
sbatch -N 3 launch/slurm.sbatch check_cluster placement=2p1d fabric=tcp
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from xpyd.compose import ROOT, compose
from xpyd.config.base import ConfigError
from xpyd.config.wire import CheckCluster
from xpyd.entry import Job, main
from xpyd.launcher import inside_mpi
from xpyd.preflight.finding import Finding, failed
from xpyd.preflight.judge_ranks import judge_silence
from xpyd.preflight.launched import Launched, judge_worlds, launched
from xpyd.preflight.show import LOG_WIDTH, print_findings, summary, write_findings
from xpyd.preflight.watch import Watch, say_expired
from xpyd.resume import open_run
from xpyd.run_dir import RunDir

START_S = 120.0  # for MPI to start everywhere, and for the configuration to come from rank 0
REACH_S = 10.0  # for the first message between any two ranks
LATER_S = 10.0  # the first task's watch goes first, since it speaks for all
NOT_READY = 2


class NotReady(ConfigError):
    """The check is complete, and the cluster is not ready."""


def run(job: Job, watch: Watch) -> None:
    from xpyd.preflight.conduct import Preflight, Setup  # ranks only: MPI

    config: CheckCluster = job.config
    setup = Setup(config.placement, config.transport, config.fabric, config.check, config.pool_bytes, ROOT)
    preflight = Preflight(setup, job.comm, job.run_dir, watch)
    preflight.place()
    preflight.gather()
    preflight.probe()
    findings = preflight.judge()
    preflight.finish()
    watch.stage("the end of all ranks", START_S)
    if job.comm.bcast(failed(findings, config.check.strict)):
        raise NotReady(f"not ready: {summary(findings)}; see {job.run_dir.path / 'findings.json'}")


def start(watch: Watch, reach_s: float = REACH_S) -> None:
    """What must be right before any rank may rely on MPI; ends this process where it is not."""
    found = launched(os.environ)
    if not inside_mpi():
        os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size((LOG_WIDTH, 24)).columns))  # for rank 0's tables
        refuse_split_worlds(found, None, "")
        return
    watch.stage("the start of MPI on all ranks", START_S + (LATER_S if found and found.task else 0.0))
    from xpyd.mpi import MPI
    from xpyd.preflight.mesh import silent_peers
    from xpyd.preflight.software import mpi_library

    refuse_split_worlds(found, MPI.COMM_WORLD.size, mpi_library())
    silent = silent_peers(MPI.COMM_WORLD, reach_s)
    if silent:
        refuse(judge_silence(silent, reach_s))
        MPI.COMM_WORLD.Abort(NOT_READY)


def refuse_split_worlds(found: Launched | None, world_size: int | None, library: str) -> None:
    """Said once, by the launcher's first task; the others leave quietly, lest they take the first along."""
    finding = judge_worlds(found, world_size, library)
    if finding is not None:
        sys.exit(refuse(finding) if found and found.task == 0 else 0)


def refuse(finding: Finding) -> int:
    """Report the one finding that ends the check before it has begun."""

    def act(run_dir: RunDir) -> int:
        print_findings([finding])
        write_findings(run_dir, [finding])
        return NOT_READY

    arguments = sys.argv[1:]
    if arguments[:1] == ["--run-folder"]:
        return act(RunDir(Path(arguments[1])))
    return compose("check_cluster", arguments, lambda config, _: act(open_run(config)))


if __name__ == "__main__":
    watch = Watch(say_expired)
    start(watch)
    main("check_cluster", lambda job: run(job, watch))
