"""The way into every experiment: Hydra once, then ranks. One command line works plain, under mpirun and under srun.

Plain: this process composes and validates the configuration, freezes it into a run folder, and starts the ranks, which
never import Hydra, or submits a job that does. Under MPI: rank 0 composes, the others wait for what it broadcasts. A
partial run is resumed by another attempt on its folder. Whatever goes wrong on a rank ends the whole job with a
traceback and a non-zero exit code.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from xpyd.compose import ROOT, USER_ERROR, compose, user_error
from xpyd.config.base import ConfigError, Experiment, Ranked
from xpyd.config.load import load_config
from xpyd.config.serve import Serve
from xpyd.faults import EXIT_RANKS_LOST, EXIT_REQUESTS_FAILED, ClientLost, RanksLost
from xpyd.follow import follow
from xpyd.launcher import inside_mpi, rank_command, rank_environment, shell_script, supervise
from xpyd.lock import InUseError
from xpyd.placement import PlacementError
from xpyd.resume import open_run, run_name
from xpyd.run_dir import RunDir, RunFolderError
from xpyd.slurm import SlurmError
from xpyd.submit import Point, dry_run, print_points, submit
from xpyd.transport.base import TransportError

STOPPED_EMPTY = 3  # stopped before one block had ended: an attempt with as little time would get no further
ABORT_TURN_S, LEAVE_TURN_S = 0.5, 0.1
TABLES_PATIENCE_S, TABLES_POLL_S = 600.0, 0.1  # of the other ranks, for rank 0 to write the tables
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)  # of the file system, not of the code
REQUEUE_PATIENCE_S = 60.0  # the attempt that Slurm has just ended may still be leaving


class Terminated(BaseException):
    """SIGTERM arrived: unwind, so that everything measured so far is written."""


@dataclass
class Stop:
    """Set by SIGUSR1 (a time limit is near): admit nothing more, drain, write."""

    requested: bool = False
    cut_short: bool = False  # blocks are left to play
    num_blocks: int = 0  # ended in this attempt
    num_failed: int = 0  # requests, likewise


@dataclass(frozen=True)
class Job:
    """One attempt at a validated experiment; ``comm`` is None where no ranks are needed.

    ``completed``: the blocks that earlier attempts on this run folder have ended.
    """

    config: Any
    run_dir: RunDir
    completed: frozenset[int] = frozenset()
    comm: Any = None
    stop: Stop = field(default_factory=Stop)

    @property
    def rank(self) -> int:
        return 0 if self.comm is None else int(self.comm.rank)

    def say(self, text: str) -> None:
        """Progress for people, from rank 0 alone."""
        if self.rank == 0:
            print(text, file=sys.stderr, flush=True)


Phases = Callable[[Job], None]


def main(experiment: str, phases: Phases) -> NoReturn:
    """Run ``phases`` as the experiment that the command line describes, and exit with its code."""
    arguments = sys.argv[1:]
    if inside_mpi():
        from xpyd.mpi import leave_together

        leave_together(_main_rank(experiment, phases, arguments))
    points: list[Point] = []
    try:
        code = compose(experiment, arguments, lambda config, overrides: _main_front(config, overrides, phases, points))
    except KeyboardInterrupt:  # with ranks, who forwards it to them returns a code
        sys.exit(user_error("interrupted; what is not written is lost", 128 + signal.SIGINT))
    if points:
        print_points(points)
        again = shlex.join(["python", "-m", f"experiments.{experiment}", *arguments])
        code = max(code, _follow_jobs(points, again))
    sys.exit(code)


def _main_front(config: Experiment, overrides: list[str], phases: Phases, points: list[Point]) -> int:
    """Outside MPI: run in this process, start the ranks, or submit a job (then a point is added to ``points``)."""
    if isinstance(config, Ranked) and config.launch.kind == "slurm":
        if config.launch.dry_run:
            return dry_run(config)
        points.append(submit(config, overrides))
        return 0
    if isinstance(config, Ranked) and config.launch.dry_run:
        _check_timeout(config, num_done=0)
        print(shell_script(_command(config, Path(config.run.root) / config.experiment / (run_name(config) or "RUN"))))
        return 0
    run_dir = open_run(config)
    if run_dir.done:
        print(f"skipped: {run_dir.path} is done (run.resume=false measures again)", file=sys.stderr, flush=True)
        return 0
    try:
        if isinstance(config, Ranked):
            _check_timeout(config, len(run_dir.completed_blocks()))
            return _start_ranks(config, run_dir, overrides)
        phases(Job(config, RunDir(run_dir.path, run_dir.next_attempt())))
    except ConfigError:
        run_dir.drop_if_empty()
        raise
    run_dir.finish()
    return report(run_dir, config)


def _check_timeout(config: Ranked, num_done: int) -> None:
    """Raises ConfigError where the ranks would be ended before the last request is due."""
    least_s = config.least_s(num_done)
    if least_s > config.launch.timeout_s:
        raise ConfigError(
            f"launch.timeout_s={config.launch.timeout_s:g}: the requests of {config.planned_blocks - num_done} blocks "
            f"take about {least_s:.0f} s to arrive, so the ranks would be ended before; set it well above that, or "
            "play fewer blocks or requests, or a higher rate"
        )


def _start_ranks(config: Ranked, run_dir: RunDir, overrides: list[str]) -> int:
    command = _command(config, run_dir.path)
    run_dir.write_text("command.sh", shell_script(command))
    print(
        f"run folder {run_dir.path}, {config.world_size} ranks: {shlex.join(overrides) or 'defaults'}",
        file=sys.stderr,
        flush=True,
    )
    code = supervise(command, config.launch.timeout_s, rank_environment(ROOT), lambda: run_dir.done)
    if code and run_dir.done:  # without some of its ranks or requests
        report(run_dir, config)
        return code
    if code == USER_ERROR and run_dir.drop_if_empty():
        return user_error("nothing was measured, and no run folder is left")
    if code:
        kept = f"what was measured is kept in {run_dir.path} (no DONE: partial)"
        return user_error(f"the ranks ended with exit code {code}; {kept}", code)
    return report(run_dir, config)


def _command(config: Ranked, folder: Path) -> list[str]:
    goes_on = isinstance(config, Serve) and config.faults.goes_on
    return rank_command(config.launch, config.world_size, f"experiments.{config.experiment}", folder, goes_on)


def _follow_jobs(points: list[Point], again: str) -> int:
    """With launch.wait: look at the jobs until they end. ``again`` is the command line."""
    waiting = [point.config.launch.slurm.poll_s for point in points if point.config.launch.wait]
    if not waiting:
        return 0
    try:
        return follow(points, min(waiting), again)
    except SlurmError as error:
        return user_error(f"{error}; the jobs go on")


def _main_rank(experiment: str, phases: Phases, arguments: list[str]) -> int:
    """Inside MPI: rank 0 finds or composes each job and broadcasts it; every rank runs it."""
    from xpyd.mpi import MPI, meet

    comm = MPI.COMM_WORLD
    stop = Stop()
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGUSR1, lambda number, frame: setattr(stop, "requested", True))
    _refuse_split_worlds(comm)
    meet()
    if comm.rank:
        return _follow(comm, phases, stop)
    code = 1
    try:
        if arguments[:1] == ["--run-folder"]:
            code = _lead(comm, phases, stop, RunDir(Path(arguments[1])), with_report="--report" in arguments)
        else:  # with -m, one broadcast per point
            code = compose(experiment, arguments, lambda config, _: _lead_new(comm, phases, stop, config))
    finally:
        comm.bcast(("end", code))
    return code


def _lead_new(comm: Any, phases: Phases, stop: Stop, config: Experiment) -> int:
    """As ``_lead``, on a run folder of its own or one to resume."""
    run_dir = open_run(config)
    code = _lead(comm, phases, stop, run_dir, with_report=True)
    if code == USER_ERROR:
        run_dir.drop_if_empty()
    return code


def _lead(comm: Any, phases: Phases, stop: Stop, run_dir: RunDir, with_report: bool) -> int:
    """Rank 0's part of one job: begin an attempt on the run folder, unless the run is done or in use."""
    if run_dir.done:
        print(f"{run_dir.path} is done: nothing is left to run", file=sys.stderr, flush=True)
        return 0
    if stop.requested:
        print(f"stopped on request: {run_dir.path} is not begun", file=sys.stderr, flush=True)
        return 0
    patience_s = REQUEUE_PATIENCE_S if int(os.environ.get("SLURM_RESTART_COUNT") or 0) else 0.0
    try:
        with run_dir.lock(patience_s):
            attempt = RunDir(run_dir.path, run_dir.next_attempt())
            job = (run_dir.read_config(), attempt, run_dir.completed_blocks())
            comm.bcast(("job", job))
            code = _run(comm, phases, stop, *job)
    except (InUseError, RunFolderError) as error:
        return user_error(str(error))
    if code in (0, EXIT_REQUESTS_FAILED) and with_report:  # nobody in front of us will
        return max(code, report(run_dir, load_config(job[0])))
    return code


def _follow(comm: Any, phases: Phases, stop: Stop) -> int:
    while True:
        kind, content = comm.bcast(None)
        if kind == "end":
            return int(content)
        _run(comm, phases, stop, *content)


def _run(
    comm: Any, phases: Phases, stop: Stop, composed: dict[str, Any], run_dir: RunDir, completed: frozenset[int]
) -> int:
    """One job on one rank. A bad placement is every rank's finding; anything else ends the whole world."""
    stop.cut_short, stop.num_blocks, stop.num_failed = False, 0, 0
    try:
        config = load_config(composed)
        if not isinstance(config, Ranked):
            raise ConfigError(f"{config.experiment} runs in one process, without ranks; drop mpirun or srun")
        phases(Job(config, run_dir, completed, comm, stop))
        if stop.cut_short and not stop.num_blocks and comm.rank == 0:
            return user_error("stopped before one block had ended: give the run more time", STOPPED_EMPTY)
        if stop.num_failed:
            return user_error(f"{stop.num_failed} requests failed; the stages table says why", EXIT_REQUESTS_FAILED)
        return 0
    except (PlacementError, ConfigError) as error:
        return user_error(str(error)) if comm.rank == 0 else USER_ERROR
    except RanksLost as error:
        _end_without(error, comm, run_dir)
    except Terminated:
        print(f"rank {comm.rank}: SIGTERM; rows written so far are kept in {run_dir.path}", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)
    except BaseException as error:
        if (said := without_traceback(error, run_dir)) is not None:
            print(f"error: rank {comm.rank}: {said}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
            print(f"error: rank {comm.rank} failed; ending all ranks", file=sys.stderr, flush=True)
        if isinstance(error, ClientLost):
            wait_for_turn(comm.rank)
            leave_if_survived()
        comm.Abort(1)
        raise


def without_traceback(error: BaseException, run_dir: RunDir) -> str | None:
    """What to say of a failure whose message says it all; None where its traceback is needed."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        again = f"run.name={run_dir.path.name} run.resume=true"
        return f"{os.strerror(error.errno)}: {run_dir.path} cannot be written; make room, then go on with {again}"
    return str(error) if isinstance(error, ValueError | TransportError) else None


def _end_without(error: RanksLost, comm: Any, run_dir: RunDir) -> NoReturn:
    """All blocks are played, by the ranks that were left: write the tables, and end with a code that says so.

    Not through MPI_Finalize, which would wait for a lost rank. MPI_Abort ends all, but with ULFM its caller alone: so
    the others leave too, when rank 0 has written the tables.
    """
    if comm.rank == 0:
        before = run_dir.read_json("environment.json")
        labels = [*before.get("labels", []), f"ranks lost: {error}"]
        run_dir.write_json("environment.json", {**before, "labels": labels})
        run_dir.finish()
        print(f"error: the run went on without some of its ranks: {error}", file=sys.stderr, flush=True)
        comm.Abort(EXIT_RANKS_LOST)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # everything is written: to unwind would lead to MPI_Finalize
    deadline = time.monotonic() + TABLES_PATIENCE_S
    while not run_dir.done and time.monotonic() < deadline:
        time.sleep(TABLES_POLL_S)
    leave_in_turn(comm.rank)


def leave_in_turn(rank: int) -> NoReturn:
    """End this rank of a run that went on without some."""
    time.sleep(min(rank, 20) * LEAVE_TURN_S)
    os._exit(EXIT_RANKS_LOST)


def leave_if_survived() -> None:
    """Of a rank that was cut off: the others may well go on, where their job survives that."""
    from xpyd.mpi import leave_job, survives_ends

    if survives_ends():
        leave_job()


def wait_for_turn(rank: int) -> None:
    """Before ending the world for a reason that all ranks have: prterun (5.0.11) can lock up when several end it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(min(rank - 1, 20) * ABORT_TURN_S)


def report(run_dir: RunDir, config: Experiment) -> int:
    """Print the tables and write report.html, in a process of its own: analysis stands apart from the library.

    A partial run gets none: near its time limit it has no time for one, and it may be resumed.
    """
    if not run_dir.done:
        read = f"python -m analysis.report --allow-partial --print {shlex.quote(str(run_dir.path))}"
        print(f"partial results: {run_dir.path}; read them with {read}", file=sys.stderr, flush=True)
        return 0
    print(f"results: {run_dir.path}", file=sys.stderr, flush=True)
    if not config.run.report:
        return 0
    command = [sys.executable, "-m", "analysis.report", "--print", str(run_dir.path)]
    return subprocess.run(command, cwd=ROOT).returncode


def mpi_library() -> str:
    """The MPI library that this rank runs on, in its own words."""
    from xpyd.mpi import MPI

    return str(MPI.Get_library_version().splitlines()[0].strip("\0"))


def _refuse_split_worlds(comm: Any) -> None:
    """N ranks that each believe they are alone: the launcher's PMI does not fit the MPI library."""
    expected = int(os.environ.get("SLURM_NTASKS") or os.environ.get("OMPI_COMM_WORLD_SIZE") or 1)
    if comm.size == 1 and expected > 1:
        sys.exit(
            user_error(
                f"{expected} tasks were started, but MPI sees a world of 1: the launcher's PMI does not match this MPI "
                "library; try srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH)"
            )
        )


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
