"""Every transport between real nodes: the wire is named, and the ledger, the transport and the interfaces agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.mpi.test_experiments import tables
from tests.slurm.conftest import ROOT, VirtualCluster

ROUTES = {"ucx": "tcp/eth0", "nixl": "tcp/eth0", "mpi": "unknown"}
MOVED = ["model=micro", "placement=1p1d", "workload.num_requests=6", "workload.input_len=300", "workload.output_len=6"]
FRAMING = 1.5  # headers, control messages, and tokens that go to the client


@pytest.fixture(autouse=True)
def settings(cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("XPYD_PYTHON", sys.executable), ("XPYD_LOG_DIR", str(tmp_path / "logs"))):
        monkeypatch.setitem(cluster.env, name, value)


@pytest.mark.long
def test_ledger_transport_and_interfaces_count_the_same_bytes(cluster: VirtualCluster, tmp_path: Path) -> None:
    pytest.importorskip("nixl_cu12", reason="no nixl: pip install 'xpyd[nixl]'")
    script = ["-N", "2", f"--output={tmp_path}/job.out", str(ROOT / "launch/slurm.sbatch")]
    sweep = ["-m", f"transport={','.join(ROUTES)}", "transfer.verify=always", "run.report=false"]
    job = cluster.submit(ROOT, *script, "serve", *sweep, *MOVED, f"run.root={tmp_path}")
    state = cluster.finish(job)
    output = (tmp_path / "job.out").read_text()
    assert state == "COMPLETED", output
    seen = set()
    for folder in (tmp_path / "serve").iterdir():
        environment = json.loads((folder / "environment.json").read_text())
        used = yaml.safe_load((folder / "config.yaml").read_text())["transport"]["name"]
        seen.add(used)
        assert environment["routes"] == {"1->2": ROUTES[used], "2->1": ROUTES[used]}
        found = tables(folder)
        ledger, transport, interfaces = found["blocks"][["ledger_bytes", "transport_bytes", "interface_bytes"]].sum()
        assert ledger == transport == found["transfers"]["payload_bytes"].sum() > 1e5, used
        assert ledger <= interfaces <= FRAMING * ledger, used
        assert found["transfers"]["verified"].all()
    assert seen == set(ROUTES)
