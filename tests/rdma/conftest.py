"""One boot of the guest for all tests of verbs: it runs programs/session.sh, and the tests judge what that left."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.rdma_guest.__main__ import refusal

ROOT = Path(__file__).parents[2]
SESSION = Path(__file__).parent / "programs" / "session.sh"
LIMIT_S = 600  # of the boot with all steps; most of it is three emulated ranks that import torch
NO_TEST_TIMEOUT = 0  # the first test waits for the boot, which has its own bound


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    reason = refusal() if mine else None
    for item in mine:
        item.add_marker(pytest.mark.rdma)
        item.add_marker(pytest.mark.timeout(NO_TEST_TIMEOUT))
        if reason:
            item.add_marker(pytest.mark.skip(reason=f"no guest: {reason}"))


@dataclass(frozen=True)
class Session:
    """What the guest left; ``output`` is its own report."""

    folder: Path
    output: str

    def step(self, name: str, code: int = 0) -> str:
        """The output of a step that must have ended with ``code``."""
        path = self.folder / f"{name}.out"
        assert path.exists(), f"step {name} did not run\n{self.output}"
        text, found = path.read_text(), int((self.folder / f"{name}.code").read_text())
        assert found == code, f"step {name}: exit code {found}\n{text}"
        return text


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("verbs")
    guest = [sys.executable, "-m", "launch.rdma_guest", "run", "--share", str(folder), "--limit", str(LIMIT_S)]
    done = subprocess.run([*guest, str(SESSION), str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    print(done.stdout)
    return Session(folder, done.stdout)
