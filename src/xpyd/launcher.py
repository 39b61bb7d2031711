"""Starts the ranks of a job through mpirun or srun, under a parent that forwards signals and never hangs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from xpyd.config.base import ConfigError, LaunchConfig
from xpyd.faults import EXIT_RANKS_LOST

POLL_S = 0.5
GRACE_S = 15.0  # from a forwarded signal to SIGKILL: time for ranks to write what they have
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
# Where mpirun of Open MPI 5 and 4 keeps its session on its own node (other nodes follow TMPDIR).
SESSION_VARIABLES = ("PRTE_MCA_prte_local_tmpdir_base", "OMPI_MCA_orte_local_tmpdir_base")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def inside_mpi() -> bool:
    """True where a launcher has started this process as a rank."""
    return any(name in os.environ for name in RANK_VARIABLES)


def rank_command(
    launch: LaunchConfig, num_ranks: int, module: str, run_folder: Path, goes_on: bool = False
) -> list[str]:
    """The command that starts ``num_ranks`` ranks of ``module`` on a prepared run folder. Raises ConfigError.

    ``goes_on``: the run is to outlive a rank whose process ends, where this MPI can.
    """
    program = [sys.executable, "-m", "mpi4py", "-m", module, "--run-folder", str(run_folder)]
    if launch.kind == "srun":
        return [_find("srun", "launch.kind"), f"--ntasks={num_ranks}", "--kill-on-bad-exit=1", *launch.args, *program]
    mpirun = _local_mpirun(launch) if launch.kind == "local" else _find(launch.mpirun, "launch.mpirun")
    return [mpirun, *_mpirun_options(mpirun, goes_on), "-n", str(num_ranks), *launch.args, *program]


def rank_environment(root: Path) -> dict[str, str]:
    """This environment with the defaults of launch/env.sh, each where it is not set: those of the launch scripts."""
    show = ["bash", "-c", f"set -a; source {shlex.quote(str(root / 'launch' / 'env.sh'))}; env -0"]
    shown = subprocess.run(show, capture_output=True, check=True, timeout=30).stdout
    return dict(os.fsdecode(entry).split("=", 1) for entry in shown.split(b"\0") if entry)


@contextmanager
def own_session(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment in which an mpirun keeps its session in a new folder, removed at the end; a set one stays.

    Open MPI 5 names the session by its process id alone. What a killed mpirun left in a shared /tmp ends a later one
    that is given the same id, with code 213 ("The PMIx server's listener thread failed to start").
    """
    with TemporaryDirectory(prefix="xpyd-", ignore_cleanup_errors=True) as folder:
        yield {**dict.fromkeys(SESSION_VARIABLES, folder), **environment}


def supervise(
    command: list[str], timeout_s: float, environment: dict[str, str], done: Callable[[], bool] = lambda: False
) -> int:
    """Run a command to its end and return its exit code; forwards signals; ends it at ``timeout_s`` (code 124).

    ``done``: the work is. What lingers then is a launcher that waits for stopped ranks: it is ended, with the code of a
    run that went on without them.
    """
    with own_session(environment) as own:
        return _supervise(subprocess.Popen(command, start_new_session=True, env=own), timeout_s, done)


def _supervise(child: subprocess.Popen[bytes], timeout_s: float, done: Callable[[], bool]) -> int:
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        child.send_signal(signal.SIGTERM if number == signal.SIGINT else number)

    previous = {number: signal.signal(number, forward) for number in FORWARDED}
    try:
        return _wait(child, timeout_s, received, done)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _wait(child: subprocess.Popen[bytes], timeout_s: float, received: list[int], done: Callable[[], bool]) -> int:
    waited_s, ending_s, lingering_s = 0.0, 0.0, 0.0
    while True:
        try:
            code = child.wait(timeout=POLL_S)
            fatal = [number for number in received if number != signal.SIGUSR1]
            return 128 + fatal[0] if fatal else code if code >= 0 else 128 - code
        except subprocess.TimeoutExpired:
            waited_s += POLL_S
        if any(number != signal.SIGUSR1 for number in received):
            ending_s += POLL_S
        elif done():
            lingering_s += POLL_S
        if ending_s > GRACE_S:
            child.kill()
        if lingering_s > GRACE_S:
            print("error: the run is done, and ranks that were lost keep the launcher; ending it", file=sys.stderr)
            _end(child)
            return EXIT_RANKS_LOST
        if waited_s > timeout_s and not ending_s:
            print(f"error: no end after launch.timeout_s={timeout_s} s; ending the ranks", file=sys.stderr)
            _end(child)
            return 124


def _end(child: subprocess.Popen[bytes]) -> None:
    """By SIGTERM, so that it ends its ranks; by SIGKILL where it does not."""
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _local_mpirun(launch: LaunchConfig) -> str:
    """The mpirun of this Python's environment (the embedded wheel) before the one on PATH."""
    beside = Path(sys.prefix) / "bin" / launch.mpirun
    return str(beside) if beside.exists() else _find(launch.mpirun, "launch.mpirun")


def _mpirun_options(mpirun: str, goes_on: bool) -> list[str]:
    """Options by MPI family. Ranks pin themselves, so binding is off; ob1 keeps MPI's own UCX out of the process.

    Open MPI 5 has ULFM: without it a dead rank ends the job, whatever the others do.
    """
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, timeout=30).stdout
    if "Open MPI" not in version and "PRTE" not in version:
        return []
    options = ["--oversubscribe", "--bind-to", "none", "--mca", "pml", "ob1"]
    if goes_on and re.search(r"\(Open MPI\) [5-9]|PRTE", version):
        options += ["--with-ft", "ulfm"]
    return ["--allow-run-as-root", *options] if os.geteuid() == 0 else options


def _find(program: str, key: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise ConfigError(
            f"{key}: no program {program!r} on PATH; load your site's MPI module, or install the embedded one "
            "(pip install 'xpyd[embedded]')"
        )
    return found


def shell_script(command: list[str]) -> str:
    """The command as a script that starts the same ranks again by hand: a partial run goes on."""
    return f"#!/bin/sh\n# The ranks of this run, as they were started.\nexec {shlex.join(command)}\n"
