"""What a rank's start does not load: every rank of every job would pay for it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

RANKED = ("trial", "calibration", "colocated_tuning", "handoffs", "kv_caches", "regret", "saturation", "worker.session")
SIMULATED = ("planning", "simulation")
HEAVY = ("hydra", "matplotlib", "mpi4py", "pandas", "scipy", "torch")
START = """
import importlib
import sys
from pathlib import Path
for name in sys.argv[2:]:
    importlib.import_module("xpyd." + name)
from xpyd.run_dir import RowWriter, RunDir
RowWriter(RunDir(Path(sys.argv[1])), 1)
print(*sys.modules, sep="\\n")
"""


@pytest.mark.parametrize(
    ("modules", "loaded"),
    [(("worker.session", "worker.equipment"), ["mpi4py", "torch"]), (RANKED, ["mpi4py"]), (SIMULATED, [])],
    ids=["worker", "client", "simulation"],
)
def test_ranks_load_what_they_need(tmp_path: Path, modules: tuple[str, ...], loaded: list[str]) -> None:
    """Hydra, pandas and scipy nowhere; torch, which takes seconds, where there is a model; MPI on ranks."""
    command = [sys.executable, "-c", START, str(tmp_path), *modules]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert sorted(set(HEAVY) & set(found.stdout.split())) == loaded
    assert all(map(find_spec, HEAVY)), "what is not there cannot be loaded"
