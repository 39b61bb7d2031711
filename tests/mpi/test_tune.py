"""``tune`` over loopback: candidates are timed side by side, a refused one is told, the preset is one to run with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from xpyd.config.load import load_config
from xpyd.config.wire import Transfer

ROOT = Path(__file__).parents[2]
SEARCH = """\
axes:
  segments:
    64k: {TCP_TX_SEG_SIZE: 64k, TCP_RX_SEG_SIZE: 64k}
    refused: {TCP_TX_SEG_SIZE: 1m, TCP_RX_SEG_SIZE: 64k}
piece_bytes: [65536, 1048576]
payload_bytes: 4194304
scatter_below_bytes: 1048576
flying_bytes: 1048576
num_repeats: 3
num_final_repeats: 3
min_gain: 0.0
"""


@pytest.mark.long
@pytest.mark.mpi
def test_tune_writes_a_preset_that_loads(tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "few.yaml").write_text(SEARCH)
    overrides = ["search=few", "placement.allow_shared_node=true", "fabric.net_devices=[lo]", f"run.root={tmp_path}"]
    command = [sys.executable, "-m", "experiments.tune", "--config-dir", str(tmp_path), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "tune").iterdir()
    rows = pd.read_parquet(folder / "tune.parquet")
    timed = rows[rows["refused"] == ""]
    assert (timed["seconds"] > 0).all()
    assert timed.groupby(["axis", "candidate"]).size().to_dict() == {
        ("segments", "as it was"): 6,
        ("segments", "64k"): 6,
        ("final", "start"): 6,
        ("final", "tuned"): 6,
        ("final", "UCX's defaults"): 6,
    }
    (refused,) = rows[rows["refused"] != ""].to_dict("records")
    assert refused["candidate"] == "refused"
    assert "UCX does not start" in refused["refused"]
    assert "final" in done.stdout, "the report shows the rounds"

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("transfer", [f"hydra.searchpath=[file://{folder}]", "fabric=tuned"])
    config = load_config(OmegaConf.to_container(composed, resolve=True))  # type: ignore[arg-type]
    assert isinstance(config, Transfer)
    tried = [json.loads(settings) for settings in timed["settings"]]
    assert config.fabric.ucx in tried
    assert config.fabric.net_devices == ("lo",)


@pytest.mark.mpi
def test_tune_refuses_a_transport_that_would_ignore_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.tune", "transport=mpi", "fabric=auto", f"run.root={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "experiment=tune" in done.stderr
