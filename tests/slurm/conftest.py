"""One virtual cluster for all Slurm tests, tied to this process: were it killed, the cluster would end with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from launch.virtual_cluster.namespaces import extend_path, refusal

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
ENDED = {"COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    extend_path()
    mine = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    reason = refusal() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.slurm)
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"no virtual cluster: {reason}"))


@dataclass
class VirtualCluster:
    """The command line of a cluster in ``folder``, as a user types it."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "launch.virtual_cluster", "--dir", str(self.folder), *arguments]

    def start(self, *arguments: str, cwd: Path = ROOT, **options: Any) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.env}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(self.command(*arguments), cwd=cwd, env=env, text=True, **pipes)

    def call(self, *arguments: str, code: int = 0, cwd: Path = ROOT, timeout: float = 120) -> str:
        """The output of a command that must end with ``code``; stderr where it must fail."""
        child = self.start(*arguments, cwd=cwd)
        try:
            output, errors = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            output, errors = child.communicate()
            pytest.fail(f"{arguments} took more than {timeout} s\n{output}\n{errors}")
        assert child.returncode == code, f"{arguments}: exit code {child.returncode}\n{output}\n{errors}"
        return output if code == 0 else errors

    def run(self, *command: str, **options: Any) -> str:
        return self.call("run", *command, **options)

    def on(self, node: str, *command: str, **options: Any) -> str:
        return self.call("exec", node, *command, **options)

    def status(self) -> dict[str, dict[str, Any]]:
        return {row["node"]: row for row in json.loads(self.call("status", "--json"))}

    def submit(self, folder: Path, *arguments: str) -> str:
        """The id of a job submitted from ``folder``."""
        return self.run("sbatch", "--parsable", *arguments, cwd=folder).strip()

    def job(self, job_id: str, *fields: str) -> list[str]:
        """Fields of ``scontrol show job``, such as JobState."""
        text = self.run("scontrol", "show", "job", job_id)
        return [re.search(rf"\b{name}=(\S*)", text)[1] for name in fields]  # type: ignore[index]

    def finish(self, job_id: str, timeout: float = 120) -> str:
        """The state a job ended in. One that does not end is shown, and ended, for the tests that come."""
        try:
            wait_for(lambda: self.job(job_id, "JobState")[0] in ENDED, f"the end of job {job_id}", timeout)
        except AssertionError as error:
            evidence = self.evidence(job_id)
            self.run("scancel", job_id)
            pytest.fail(f"{error}\n{evidence}")
        return self.job(job_id, "JobState")[0]

    def evidence(self, job_id: str) -> str:
        """What the cluster knows of a job that should have ended, and the end of what it printed."""
        asked = (["scontrol", "show", "job", job_id], ["squeue", "-a"], ["squeue", "-s"], ["sinfo", "-N", "-l"])
        output = Path(self.job(job_id, "StdOut")[0])
        printed = output.read_text()[-2000:] if output.exists() else "nothing"
        processes = self.run("sh", "-c", "ps -eo pid,ppid,stat,etimes,args | grep -E 's[r]un|[s]lurm|[e]xperiments'")
        return "\n".join([*(self.run(*command) for command in asked), processes, f"it printed: {printed}"])

    def complete(self, job_id: str, output: Path, timeout: float = 120) -> None:
        """Wait for the end of a job that must be a success; ``output`` is shown where it is not."""
        state = self.finish(job_id, timeout)
        assert state == "COMPLETED", f"job {job_id}: {state}\n{output.read_text()}"


def wait_for(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"no sign of {what} within {timeout} s"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualCluster]:
    """Four idle nodes, unshaped; tests leave them so."""
    cluster = VirtualCluster(tmp_path_factory.mktemp("cluster"))
    tied = ["setpriv", "--pdeathsig", "KILL", *cluster.command("up", "-n", "4", "--rate", "none", "--foreground")]
    front = subprocess.Popen(tied, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert front.stdout is not None
    assert front.stderr is not None
    if not front.stdout.readline():
        pytest.fail(front.stderr.read())
    yield cluster
    cluster.call("down")
    assert front.wait(30) == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the real launch scripts and a tiny experiment, ``hello``."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    shutil.copytree(PROGRAMS / "experiments", tmp_path / "experiments")
    return tmp_path


def hello(output: str) -> dict[str, Any]:
    """What rank 0 of ``hello`` said."""
    lines = [line for line in output.splitlines() if line.startswith("hello ")]
    assert len(lines) == 1, f"expected one world, got:\n{output}"
    said: dict[str, Any] = json.loads(lines[0].removeprefix("hello "))
    return said


def alive(pids: Sequence[int]) -> list[int]:
    """Those of ``pids`` that still run (a zombie does not)."""
    return [pid for pid in pids if _state(pid) not in ("", "Z", "X")]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
