"""What a rank's start does not load: every rank of every job would pay for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

START = """
import sys
from pathlib import Path
import xpyd.worker.session
from xpyd.run_dir import RowWriter, RunDir
RowWriter(RunDir(Path(sys.argv[1])), 1)
print(sorted({"hydra", "matplotlib", "pandas", "scipy"} & set(sys.modules)))
import pandas
"""


def test_ranks_load_neither_hydra_nor_pandas_nor_scipy(tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, "-c", START, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "[]\n"
