"""Messages between real ranks: nothing waits, nothing is written over, nothing is overtaken."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs/lines.py"


@pytest.mark.mpi
def test_a_line_does_not_wait_for_a_rank_that_does_not_look(
    mpirun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """In shared memory a message leaves when it is looked at: a worker's steps must not depend on that."""
    done = mpirun(2, ["-m", "mpi4py", str(PROGRAM)])
    assert done.returncode == 0, done.stderr


@pytest.mark.mpi
def test_what_came_while_a_rank_computed_is_found_at_its_first_look(
    mpirun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Between the layers of a prompt there is one look, and the next is a layer later."""
    done = mpirun(2, ["-m", "mpi4py", str(PROGRAM.with_name("first_look.py")), str(tmp_path)])
    assert done.returncode == 0, done.stderr
