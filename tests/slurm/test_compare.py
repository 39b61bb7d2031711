"""The main job on real nodes: sbatch of a comparison, KV that crosses the veth, and placements that are refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.mpi.test_experiments import run_folder, tables, tokens_by_arm
from tests.slurm.conftest import ROOT, VirtualCluster

SMALL = [
    "model=micro",
    "fabric=tcp",
    "workload.num_requests=6",
    "workload.input_len=300",
    "workload.output_len=6",
    "workload.arrival.rate_rps=20",
    "num_pairs=1",
    "run.report=false",
]


def submit(cluster: VirtualCluster, folder: Path, num_nodes: int, *overrides: str) -> tuple[str, str]:
    """The state that a comparison ended in, and its output; runs go to ``folder``."""
    arguments = ["-N", str(num_nodes), f"--output={folder}/job.out", str(ROOT / "launch/slurm.sbatch"), "compare"]
    job = cluster.submit(ROOT, *arguments, *SMALL, f"run.root={folder}", *overrides)
    state = cluster.finish(job)
    return state, (folder / "job.out").read_text()


@pytest.fixture(autouse=True)
def settings(cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("XPYD_PYTHON", sys.executable), ("XPYD_LOG_DIR", str(tmp_path / "logs"))):
        monkeypatch.setitem(cluster.env, name, value)


@pytest.mark.parametrize(("placement", "num_nodes"), [("1p1d", 2), ("2p1d", 3)])
def test_kv_crosses_the_wire_between_nodes(
    cluster: VirtualCluster, tmp_path: Path, placement: str, num_nodes: int
) -> None:
    before = cluster.status()
    state, output = submit(cluster, tmp_path, num_nodes, f"placement={placement}", "transfer.verify=always")
    assert state == "COMPLETED", output
    found = tables(run_folder(tmp_path, "compare"))
    arms = tokens_by_arm(found)
    assert (arms["colocated"] == arms["disaggregated"]).all()
    assert found["transfers"]["verified"].all()
    _bytes_agree(cluster, found, before, decode_node=f"n{num_nodes}")
    environment = json.loads((run_folder(tmp_path, "compare") / "environment.json").read_text())
    assert set(environment["routes"].values()) == {"tcp/eth0"}
    assert environment["labels"] == ["CPU", "emulated link"]
    assert environment["hosts"] == [f"n{i + 1}" for i in range(num_nodes)]


def _bytes_agree(
    cluster: VirtualCluster, found: dict[str, pd.DataFrame], before: dict[str, dict[str, int]], decode_node: str
) -> None:
    """The ledger, the transport, the run's interface count and the cluster's own count of the veth agree."""
    block = found["blocks"].set_index("arm").loc["disaggregated"]
    assert block["ledger_bytes"] == block["transport_bytes"] == found["transfers"]["payload_bytes"].sum()
    assert block["ledger_bytes"] > 1e5
    assert block["ledger_bytes"] <= block["interface_bytes"] <= 1.5 * block["ledger_bytes"]
    crossed = cluster.status()[decode_node]["received_bytes"] - before[decode_node]["received_bytes"]
    assert crossed >= block["ledger_bytes"]


def test_two_roles_on_one_node_are_refused(
    cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster.env, "XPYD_WORKERS_PER_NODE", "2")
    state, output = submit(cluster, tmp_path, 1, "placement=1p1d")
    assert state == "FAILED"
    assert "puts prefill and decode on one node" in output


def test_too_few_nodes_are_refused(cluster: VirtualCluster, tmp_path: Path) -> None:
    state, output = submit(cluster, tmp_path, 2, "placement=2p1d")
    assert state == "FAILED"
    assert "placement 2P1D needs 4 ranks (1 client + 3 workers), 3 were started" in output


def test_a_fallback_is_refused_in_strict_mode(cluster: VirtualCluster, tmp_path: Path) -> None:
    state, output = submit(cluster, tmp_path, 2, "placement=1p1d", "fabric=ib")
    assert state == "FAILED"
    assert "error: rank" in output
    assert "fabric" in output
    assert "Traceback" not in output
