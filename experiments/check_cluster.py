"""Is this cluster ready? Ranks, MPI, UCX, wires, clocks, memory, versions: each finding with its remedy.

python -m experiments.check_cluster placement.allow_shared_node=true
mpirun -n 3 python -m experiments.check_cluster placement=1p1d
sbatch -N 3 launch/slurm.sbatch check_cluster placement=2p1d fabric=tcp
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from xpyd.config import CheckCluster, ConfigError
from xpyd.entry import ROOT, Job, compose, main
from xpyd.launcher import inside_mpi
from xpyd.preflight.finding import Finding, failed
from xpyd.preflight.launched import judge_worlds, launched
from xpyd.preflight.show import print_findings, summary, write_findings
from xpyd.preflight.watch import Watch, say_expired
from xpyd.resume import open_run
from xpyd.run_dir import RunDir

START_S = 120.0  # for MPI to start everywhere, and for the configuration to come from rank 0
NOT_READY = 2


class NotReady(ConfigError):
    """The check is complete, and the cluster is not ready."""


def run(job: Job, watch: Watch) -> None:
    from xpyd.preflight.conduct import Preflight, Setup  # ranks only: MPI

    config: CheckCluster = job.config
    setup = Setup(config.placement, config.transport, config.fabric, config.check, config.pool_bytes, ROOT)
    preflight = Preflight(setup, job.comm, job.run_dir, watch)
    preflight.reach()
    preflight.place()
    preflight.gather()
    preflight.probe()
    findings = preflight.judge()
    preflight.finish()
    watch.stage("the end of all ranks", START_S)
    if job.comm.bcast(failed(findings, config.check.strict)):
        raise NotReady(f"not ready: {summary(findings)}; see {job.run_dir.path / 'findings.json'}")


def split_world() -> Finding | None:
    """The finding where the launcher's tasks do not see each other; None where they do, or there is no launcher."""
    if not inside_mpi():
        return judge_worlds(launched(os.environ), None, "")
    from xpyd.mpi import MPI
    from xpyd.preflight.software import mpi_library

    return judge_worlds(launched(os.environ), MPI.COMM_WORLD.size, mpi_library())


def refuse(finding: Finding, arguments: list[str]) -> int:
    """Say it once, from the launcher's first task; the others leave quietly, lest they take the first along."""
    found = launched(os.environ)
    if found is None or found.task:
        return 0

    def act(run_dir: RunDir) -> int:
        print_findings([finding])
        write_findings(run_dir, [finding])
        return NOT_READY

    if arguments[:1] == ["--run-folder"]:
        return act(RunDir(Path(arguments[1])))
    return compose("check_cluster", arguments, lambda config, _: act(open_run(config)))


if __name__ == "__main__":
    watch = Watch(say_expired)
    if inside_mpi():
        watch.stage("the start of MPI on all ranks", START_S)
    problem = split_world()
    if problem is not None:
        sys.exit(refuse(problem, sys.argv[1:]))
    main("check_cluster", lambda job: run(job, watch))
