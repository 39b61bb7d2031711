"""The preflight on real nodes: by sbatch and srun, on a shaped link, behind a wrong PMI, and where a wire is dead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.test_check_cluster import by_check, findings
from tests.slurm.conftest import ROOT, VirtualCluster

QUICK = ["check.num_pieces=16", "check.num_repeats=3"]
ECHO_BYTES = 1 << 20
BURST_BYTES = 128 << 10  # what a paused link lets through at once
NOBODY = "02:00:00:00:00:99"  # frames to this address reach no one: a firewall that drops


@pytest.fixture(autouse=True)
def settings(cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("XPYD_PYTHON", sys.executable), ("XPYD_LOG_DIR", str(tmp_path / "logs"))):
        monkeypatch.setitem(cluster.env, name, value)


def check(cluster: VirtualCluster, folder: Path, *overrides: str) -> tuple[str, str, dict[str, Any]]:
    """2P1D on three nodes by sbatch: the job's state, its output, its findings."""
    arguments = ["-N", "3", f"--output={folder}/job.out", str(ROOT / "launch/slurm.sbatch"), "check_cluster"]
    job = cluster.submit(ROOT, *arguments, "placement=2p1d", *QUICK, f"run.root={folder}/runs", *overrides)
    state = cluster.finish(job)
    output = (folder / "job.out").read_text()
    return state, output, findings(folder / "runs")


@pytest.fixture
def shaped(cluster: VirtualCluster) -> Iterator[None]:
    cluster.call("shape", "1gbit")
    yield
    cluster.call("shape", "none")


@pytest.mark.long
@pytest.mark.usefixtures("shaped")
def test_a_shaped_link_is_measured_and_named(cluster: VirtualCluster, tmp_path: Path) -> None:
    wire = ["fabric=tcp", "fabric.net_devices=[eth0]", "fabric.rate_gbps=1"]
    state, output, content = check(cluster, tmp_path, *wire)
    assert state == "COMPLETED", output
    assert content["num_errors"] == 0
    assert [(rank["node"], rank["role"]) for rank in content["ranks"]] == [
        ("n1", "client"),
        ("n1", "prefill"),
        ("n2", "prefill"),
        ("n3", "decode"),
    ]
    assert [pair["route"] for pair in content["pairs"]] == ["tcp/eth0", "tcp/eth0"]
    for pair in content["pairs"]:
        assert 0 < pair["rate_bytes_per_s"] < 1.05 * 1e9 / 8, "no faster than the link"
        assert pair["echo_s"] > 2 * (ECHO_BYTES - BURST_BYTES) * 8 / 1e9, "there and back over the link"
    assert "2P1D: 4 ranks on 3 nodes; no prefill and decode worker share a node" in output


def test_strict_infiniband_is_refused_with_the_remedy(cluster: VirtualCluster, tmp_path: Path) -> None:
    state, output, content = check(cluster, tmp_path, "fabric=ib")
    assert state == "FAILED"
    found = by_check(content)
    assert found["InfiniBand on n1, n2, n3"]["level"] == "error"
    assert "fabric=tcp" in found["InfiniBand on n1, n2, n3"]["remedy"]
    assert found["connection"]["level"] == "error"
    assert "error: not ready" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("pmi", "words"), [("pmi2", "each sees a world of 1"), ("none", "offers them no PMI")])
def test_worlds_of_one_rank_are_named_once(cluster: VirtualCluster, tmp_path: Path, pmi: str, words: str) -> None:
    """The embedded Open MPI speaks PMIx alone."""
    ranks = ["srun", f"--mpi={pmi}", "-N3", "-n3", sys.executable, "-m", "experiments.check_cluster"]
    pipes = cluster.start("run", *ranks, f"run.root={tmp_path}")
    output, _ = pipes.communicate(timeout=100)
    assert pipes.returncode != 0
    assert output.count("3 worlds of one rank") == 1
    assert words in output
    (found,) = findings(tmp_path)["findings"]
    assert "--mpi=pmix" in found["remedy"]


@pytest.fixture
def second_network(cluster: VirtualCluster) -> Iterator[None]:
    """``eth1`` on three nodes: a wire between n1 and n3, and none to n2, whose frames are lost without a word."""
    address = {node: f"10.78.0.{node[1:]}" for node in ("n1", "n2", "n3")}
    for node, far_end in (("n1", "eth1 netns $(cat /run/xpyd/cluster/nodes/n3)"), ("n2", "eth1-open")):
        cluster.on(node, "sh", "-c", f"ip link add eth1 type veth peer name {far_end}")
    for node in address:
        cluster.on(node, "sh", "-c", f"ip address add {address[node]}/24 dev eth1 && ip link set eth1 up")
    cluster.on("n2", "ip", "link", "set", "eth1-open", "up")
    for node, peers in (("n2", ("n1", "n3")), ("n1", ("n2",)), ("n3", ("n2",))):
        for peer in peers:
            lost = ["ip", "neigh", "replace", address[peer], "lladdr", NOBODY, "dev", "eth1", "nud", "permanent"]
            cluster.on(node, *lost)
    yield
    for node in ("n1", "n2"):
        cluster.on(node, "ip", "link", "delete", "eth1")


@pytest.mark.long
@pytest.mark.usefixtures("second_network")
def test_a_pair_whose_wire_is_dead_is_named_and_the_other_is_measured(
    cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cluster.env, "OMPI_MCA_btl_tcp_if_include", "eth0")  # MPI would use the dead wire, too
    dead = ["fabric=tcp", "fabric.net_devices=[eth1]", "check.timeout_s=3"]
    state, output, content = check(cluster, tmp_path, *dead)
    assert state == "FAILED", output
    found = by_check(content)["connection 2->3"]
    assert found["level"] == "error"
    assert found["found"].startswith("n2 -> n3: ")
    assert "within 3 s" in found["found"]
    assert "fabric.net_devices" in found["remedy"]
    well, dead_pair = content["pairs"]
    assert well["route"] == "tcp/eth1"
    assert well["rate_bytes_per_s"] > 0
    assert dead_pair["rate_bytes_per_s"] is None
