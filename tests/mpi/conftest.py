"""How the tests start ranks: the mpirun beside this Python first, then the one on PATH; skipped without either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def find_mpirun() -> str | None:
    beside = Path(sys.prefix) / "bin" / "mpirun"
    return str(beside) if beside.exists() else shutil.which("mpirun")


@pytest.fixture
def mpirun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``mpirun(num_ranks, python_arguments, timeout)`` runs ranks of this Python at the repository's root."""
    program = find_mpirun()
    if program is None:
        pytest.skip("no mpirun: pip install 'xpyd[embedded]'")

    def start(num_ranks: int, arguments: list[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        options = [*root, "--oversubscribe", "--bind-to", "none", "--mca", "pml", "ob1", "-n", str(num_ranks)]
        command = [program, *options, sys.executable, *arguments]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, env=environment)

    return start
