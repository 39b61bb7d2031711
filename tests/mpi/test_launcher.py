"""The ends of a job: what an earlier, killed mpirun left does not end this one, nor does a signal that comes late."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mpi.conftest import find_mpirun
from xpyd.config.base import LaunchConfig
from xpyd.launcher import SESSION_VARIABLES, rank_command, supervise

pytestmark = pytest.mark.mpi
# Becomes the mpirun of the arguments, having left what a killed one of the same process id leaves in TMPDIR.
AFTER_A_KILLED_ONE = """
import os, pathlib, socket, sys
folder = pathlib.Path(os.environ["TMPDIR"]) / f"ompi.{os.getpid()}"
folder.mkdir(mode=0o700)
for name in ("tool", f"tool.{os.getpid()}"):
    (folder / f"pmix.{socket.gethostname()}.{name}").touch()
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_the_session_of_a_killed_mpirun_is_not_met_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if find_mpirun() is None:
        pytest.skip("no mpirun: pip install 'xpyd[embedded]'")
    mpirun, *rest = rank_command(LaunchConfig(), 1, "no.module", tmp_path)
    command = [mpirun, *rest[: rest.index("-n")], "-n", "1", "true"]
    environment = {name: value for name, value in os.environ.items() if name not in SESSION_VARIABLES}
    code = supervise([sys.executable, "-c", AFTER_A_KILLED_ONE, *command], 60, {**environment, "TMPDIR": str(tmp_path)})
    assert code == 0, capfd.readouterr().err


def test_a_late_warning_does_not_fail_a_rank(mpirun: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = mpirun(1, ["-m", "mpi4py", "-m", "tests.mpi.programs.late_signal"])
    assert done.returncode == 0, done.stderr
