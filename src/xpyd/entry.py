"""The way into every experiment: Hydra once, then ranks. One command line works plain, under mpirun and under srun.

Plain: this process composes and validates the configuration, freezes it into a new run folder, and starts the ranks,
which never import Hydra. Under MPI: rank 0 composes, the others wait for what it broadcasts. Whatever goes wrong on a
rank ends the whole job with a traceback and a non-zero exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from xpyd.config import SCHEMAS, ConfigError, Experiment, Ranked, allowed_keys, dump_config, load_config, suggest
from xpyd.launcher import inside_mpi, rank_command, shell_script, supervise
from xpyd.run_dir import RunDir
from xpyd.transport.base import TransportError

ROOT = Path(__file__).parents[2]
USER_ERROR = 2


class Terminated(BaseException):
    """SIGTERM arrived: unwind, so that everything measured so far is written."""


@dataclass
class Stop:
    """Set by SIGUSR1 (a time limit is near): admit nothing more, drain, write."""

    requested: bool = False


@dataclass(frozen=True)
class Job:
    """One validated experiment on one run folder; ``comm`` is None where no ranks are needed."""

    config: Any
    run_dir: RunDir
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
        sys.exit(_main_rank(experiment, phases, arguments))
    sys.exit(compose(experiment, arguments, lambda config: _main_front(config, phases)))


def compose(experiment: str, arguments: list[str], act: Callable[[Experiment], int]) -> int:
    """Let Hydra compose ``conf/<experiment>.yaml`` with the overrides, validate, and ``act`` on each (sweep) point.

    Returns the worst exit code. Errors are printed as ``error: key=value: ...`` without a traceback.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing: the words are ours
    overrides = [word for word in arguments if word.startswith("~") or ("=" in word and not word.startswith("-"))]
    flags = [word for word in arguments if word not in overrides]  # Hydra's parser takes flags only before overrides
    sys.argv = [f"python -m experiments.{experiment}", *flags, *overrides]
    codes = [0]

    @hydra.main(  # type: ignore[untyped-decorator]
        version_base="1.3", config_path=str(ROOT / "conf"), config_name=experiment
    )
    def task(composed: Any) -> None:
        try:
            plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
            codes.append(act(load_config(plain)))
        except (ConfigError, FileExistsError) as error:  # caught here, so that the other points of a sweep go on
            codes.append(_user_error(str(error)))
        except OmegaConfBaseException as error:
            codes.append(_user_error(_explain_override(error, experiment)))

    try:
        task()
    except (HydraException, OmegaConfBaseException) as error:
        return _user_error(_explain_override(error, experiment))
    return max(codes)


def _main_front(config: Experiment, phases: Phases) -> int:
    """Outside MPI: freeze the run folder, then run in this process or start the ranks."""
    if not isinstance(config, Ranked):
        run_dir = prepare(config)
        phases(Job(config, run_dir))
        run_dir.finish()
        return report(run_dir, config)
    folder = Path(config.run.root) / config.experiment / "RUN"
    command = rank_command(config.launch, config.world_size, f"experiments.{config.experiment}", folder)
    if config.launch.dry_run:
        print(shell_script(command))
        return 0
    run_dir = prepare(config)
    command[-1] = str(run_dir.path)
    run_dir.write_text("command.sh", shell_script(command))
    print(f"run folder {run_dir.path}, {config.world_size} ranks", file=sys.stderr, flush=True)
    code = supervise(command, config.launch.timeout_s)
    if code:
        kept = f"what was measured is kept in {run_dir.path} (no DONE: partial)"
        return _user_error(f"the ranks ended with exit code {code}; {kept}", code)
    return report(run_dir, config)


def _main_rank(experiment: str, phases: Phases, arguments: list[str]) -> int:
    """Inside MPI: rank 0 finds or composes each job and broadcasts it; every rank runs it."""
    from xpyd.mpi import MPI

    comm = MPI.COMM_WORLD
    signal.signal(signal.SIGTERM, _terminate)
    _refuse_split_worlds(comm)
    if comm.rank:
        return _follow(comm, phases)
    code = 1
    try:
        if arguments[:1] == ["--run-folder"]:
            code = _lead(comm, phases, RunDir(Path(arguments[1])))
        else:
            code = compose(experiment, arguments, lambda config: _lead(comm, phases, prepare(config)))
            # (with -m, one broadcast per point)
    finally:
        comm.bcast(("end", code))
    return code


def _lead(comm: Any, phases: Phases, run_dir: RunDir) -> int:
    config = run_dir.read_config()
    comm.bcast(("job", (config, str(run_dir.path))))
    code = _run(comm, phases, config, run_dir)
    if code == 0 and inside_mpi() and not (run_dir.path / "command.sh").exists():
        return report(run_dir, load_config(config))  # nobody in front of us will
    return code


def _follow(comm: Any, phases: Phases) -> int:
    while True:
        kind, content = comm.bcast(None)
        if kind == "end":
            return int(content)
        config, folder = content
        _run(comm, phases, config, RunDir(Path(folder)))


def _run(comm: Any, phases: Phases, composed: dict[str, Any], run_dir: RunDir) -> int:
    """One job on one rank. A bad placement is every rank's finding; anything else ends the whole world."""
    from xpyd.placement import PlacementError

    stop = Stop()
    signal.signal(signal.SIGUSR1, lambda number, frame: setattr(stop, "requested", True))
    try:
        config = load_config(composed)
        if not isinstance(config, Ranked):
            raise ConfigError(f"{config.experiment} is closed form and needs no ranks; run it without mpirun or srun")
        phases(Job(config, run_dir, comm, stop))
        return 0
    except (PlacementError, ConfigError) as error:
        return _user_error(str(error)) if comm.rank == 0 else USER_ERROR
    except Terminated:
        print(f"rank {comm.rank}: SIGTERM; rows written so far are kept in {run_dir.path}", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGTERM)
    except BaseException as error:
        if isinstance(error, ValueError | TransportError):  # its message says it all
            print(f"error: rank {comm.rank}: {error}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
            print(f"error: rank {comm.rank} failed; ending all ranks", file=sys.stderr, flush=True)
        comm.Abort(1)
        raise


def prepare(config: Experiment) -> RunDir:
    """A new run folder with the frozen configuration. Raises FileExistsError."""
    run_dir = RunDir.create(Path(config.run.root), config.experiment, config.run.name)
    run_dir.write_config(dump_config(config))
    return run_dir


def report(run_dir: RunDir, config: Experiment) -> int:
    """Print the tables and write report.html, in a process of its own: analysis stands apart from the library."""
    print(f"results: {run_dir.path}", file=sys.stderr, flush=True)
    if not config.run.report:
        return 0
    partial = [] if run_dir.done else ["--allow-partial"]
    command = [sys.executable, "-m", "analysis.report", "--print", *partial, str(run_dir.path)]
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
            _user_error(
                f"{expected} tasks were started, but MPI sees a world of 1: the launcher's PMI does not match this MPI "
                "library; try srun --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH)"
            )
        )


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _explain_override(error: Exception, experiment: str) -> str:
    """Hydra's and OmegaConf's errors in one line; an unknown key gets the keys that exist there."""
    key = getattr(error.__cause__ or error, "full_key", None)
    if "Missing mandatory" in str(error):
        return f"{key}: required, but not set; add {key}=VALUE"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if not key or "not in struct" not in str(error.__cause__ or error):
        return text
    *path, last = key.split(".")
    return f"{key}: no such key; {suggest(last, allowed_keys(SCHEMAS[experiment], tuple(path)))}"


def _user_error(text: str, code: int = USER_ERROR) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr, flush=True)
    return code
