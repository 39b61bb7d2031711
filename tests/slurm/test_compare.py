"""The main job on real nodes: sbatch of a comparison, KV that crosses the veth, and placements that are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.checks import SMALL, check_comparison
from tests.slurm.conftest import ROOT, VirtualCluster


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


@pytest.mark.parametrize(("placement", "num_nodes"), [("1p1d", 2), pytest.param("2p1d", 3, marks=pytest.mark.long)])
def test_kv_crosses_the_wire_between_nodes(
    cluster: VirtualCluster, tmp_path: Path, placement: str, num_nodes: int
) -> None:
    prefill, decode = [f"n{i + 1}" for i in range(num_nodes - 1)], f"n{num_nodes}"
    before = cluster.status()[decode]["received_bytes"]
    state, output = submit(cluster, tmp_path, num_nodes, f"placement={placement}", "transfer.verify=always")
    assert state == "COMPLETED", output
    found = check_comparison(tmp_path, {"client": ["n1"], "prefill": prefill, "decode": [decode]})
    assert found["transfers"]["verified"].all()
    crossed = cluster.status()[decode]["received_bytes"] - before
    assert crossed >= found["transfers"]["payload_bytes"].sum(), "the cluster's own count of the decode node's veth"


@pytest.mark.long
def test_two_roles_on_one_node_are_refused(
    cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster.env, "XPYD_WORKERS_PER_NODE", "2")
    state, output = submit(cluster, tmp_path, 1, "placement=1p1d")
    assert state == "FAILED"
    assert "puts prefill and decode on one node" in output


@pytest.mark.long
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
