"""The launch scripts start one world in the right places on the virtual cluster, and end as they should."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, VirtualCluster, hello, wait_for


@pytest.fixture
def ready(cluster: VirtualCluster, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose launch scripts use this Python; returns its folder."""
    settings = {"XPYD_PYTHON": sys.executable, "XPYD_LOG_DIR": str(checkout / "logs")}
    settings |= {"XPYD_MEET_S": "60", "XPYD_PART_S": "10"}
    for name, value in settings.items():
        monkeypatch.setitem(cluster.env, name, value)
    return checkout


def test_srun_gives_one_world(cluster: VirtualCluster, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.env, "OMPI_MCA_pml", "ob1")
    monkeypatch.setitem(cluster.env, "SLURM_PMIX_FENCE", "ring")
    program = [sys.executable, "-m", "mpi4py", "-m", "experiments.hello"]
    said = hello(cluster.run("srun", "-N3", "-n3", "--mpi=pmix", *program, cwd=ready))
    assert said["nodes"] == ["n1", "n2", "n3"]
    assert said["local"] == [1, 1, 1]


def test_sbatch_places_client_and_workers(cluster: VirtualCluster, ready: Path) -> None:
    job = cluster.submit(ready, "-N", "3", "launch/slurm.sbatch", "hello", "model=tiny", "note='two words'")
    cluster.complete(job, ready / f"xpyd-{job}.out")
    said = hello((ready / f"xpyd-{job}.out").read_text())
    assert said["nodes"] == ["n1", "n1", "n2", "n3"]
    assert said["local"] == [2, 2, 1, 1]
    assert said["arguments"] == ["model=tiny", "note='two words'"]
    assert said["threads"] == "1"
    logs = {log.name: log.read_text() for log in (ready / f"logs/slurm-{job}").glob("rank-*.log")}
    assert logs == {f"rank-{rank}.log": f"rank {rank} speaks\n" for rank in (1, 2, 3)}


def test_more_workers_per_node(cluster: VirtualCluster, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.env, "XPYD_WORKERS_PER_NODE", "2")
    job = cluster.submit(ready, "-N", "2", "launch/slurm.sbatch", "hello")
    cluster.complete(job, ready / f"xpyd-{job}.out")
    assert hello((ready / f"xpyd-{job}.out").read_text())["nodes"] == ["n1", "n1", "n1", "n2", "n2"]


def test_a_failing_rank_fails_the_job_and_is_shown(cluster: VirtualCluster, ready: Path) -> None:
    job = cluster.submit(ready, "-N", "3", "launch/slurm.sbatch", "hello", "fail", "wait")
    assert cluster.finish(job, timeout=60) == "FAILED", "the other ranks wait forever, and must be ended"
    output = (ready / f"xpyd-{job}.out").read_text()
    assert "RuntimeError: planted failure" in output
    assert "rank-3.log" in output


def test_a_rank_that_vanishes_ends_the_job(cluster: VirtualCluster, ready: Path) -> None:
    job = cluster.submit(ready, "-N", "3", "launch/slurm.sbatch", "hello", "die", "wait")
    assert cluster.finish(job, timeout=50) == "FAILED"
    assert "ended with exit code" in (ready / f"xpyd-{job}.out").read_text()


def test_a_mistake_is_named_before_any_rank_starts(cluster: VirtualCluster, ready: Path) -> None:
    job = cluster.submit(ready, "-N", "1", "launch/slurm.sbatch", "helo")
    assert cluster.finish(job) == "FAILED"
    output = (ready / f"xpyd-{job}.out").read_text()
    assert output.startswith("error: no experiment helo; there are: hello")
    elsewhere = ready / "experiments"
    job = cluster.submit(elsewhere, "-N", "1", str(ROOT / "launch/slurm.sbatch"), "hello")
    assert cluster.finish(job) == "FAILED"
    assert "is not the checkout of xpyd" in (elsewhere / f"xpyd-{job}.out").read_text()


def test_time_nearly_up_reaches_the_ranks(cluster: VirtualCluster, ready: Path) -> None:
    job = cluster.submit(ready, "-N", "2", "launch/slurm.sbatch", "hello", "wait")
    output = ready / f"xpyd-{job}.out"
    wait_for(lambda: output.exists() and "hello" in output.read_text(), "rank 0")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.complete(job, output)
    assert "signals 1" in output.read_text()


def test_time_nearly_up_requeues(cluster: VirtualCluster, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.env, "XPYD_REQUEUE", "1")
    job = cluster.submit(ready, "-N", "2", "launch/slurm.sbatch", "hello", "wait")
    output = ready / f"xpyd-{job}.out"
    wait_for(lambda: output.exists() and "hello" in output.read_text(), "rank 0")
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    wait_for(lambda: cluster.job(job, "JobState", "Restarts") == ["PENDING", "1"], "the job in the queue again")
    assert "signals 1" in output.read_text(), "the ranks ended in order first"
    cluster.run("scancel", job)


@pytest.mark.long
def test_a_dead_node_requeues_the_job(cluster: VirtualCluster, ready: Path) -> None:
    """Power failure of a node: Slurm notices, and the job runs again on the nodes that are left."""
    job = cluster.submit(ready, "-N", "3", "launch/slurm.sbatch", "hello", "wait")
    output = ready / f"xpyd-{job}.out"
    wait_for(lambda: output.exists() and "hello" in output.read_text(), "rank 0")
    cluster.call("kill", "n3")
    try:
        wait_for(lambda: cluster.job(job, "Restarts") == ["1"], "the requeue", timeout=120)
        wait_for(lambda: cluster.job(job, "JobState") == ["PENDING"], "the end of the first attempt")
        # Not at once: nodes refuse a job's credential made in the second in which they revoked the last one.
        cluster.run("scontrol", "update", f"jobid={job}", "StartTime=now+3")
        wait_for(lambda: output.read_text().count("hello") == 2, "rank 0 of the second attempt", timeout=120)
        assert '"nodes": ["n1", "n1", "n2", "n4"]' in output.read_text()
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        cluster.complete(job, output)
    finally:
        cluster.call("boot", "n3")


def test_mpirun_across_nodes(cluster: VirtualCluster, ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.env, "XPYD_MPIRUN_AGENT", "launch/agent")
    said = hello(cluster.run("launch/mpirun.sh", "--hosts", "n1,n2,n3", "hello", "model=tiny", cwd=ready))
    assert said["nodes"] == ["n1", "n1", "n2", "n3"]
    assert said["arguments"] == ["model=tiny"]
    hostfile = ready / "hosts.txt"
    hostfile.write_text("# mine\nn4 slots=8\n\nn2:3\n")
    said = hello(cluster.run("launch/mpirun.sh", "--hostfile", "hosts.txt", "hello", cwd=ready))
    assert said["nodes"] == ["n4", "n4", "n2"]
    error = cluster.run("launch/mpirun.sh", "--hosts", "n1,n2", "hello", "fail", "wait", cwd=ready, code=1)
    assert "RuntimeError: planted failure" in error


def test_one_world_over_two_partitions(cluster: VirtualCluster, ready: Path) -> None:
    job = cluster.submit(ready, "launch/slurm_het.sbatch", "hello", "model=tiny")
    cluster.complete(job, ready / f"xpyd-{job}.out", timeout=180)
    said = hello((ready / f"xpyd-{job}.out").read_text())
    assert said["nodes"] == ["n1", "n1", "n3"], "client and prefill on the first partition, decode on the second"
    assert said["arguments"] == ["model=tiny"]
    sizes = ["-p", "prefill", "-N", "2", ":", "-p", "decode", "-N", "2"]
    job = cluster.submit(ready, *sizes, "launch/slurm_het.sbatch", "hello")
    cluster.complete(job, ready / f"xpyd-{job}.out", timeout=180)
    assert hello((ready / f"xpyd-{job}.out").read_text())["nodes"] == ["n1", "n1", "n2", "n3", "n4"]


def test_fake_gpus_are_handed_out(cluster: VirtualCluster) -> None:
    assert cluster.run("srun", "--gres=gpu:2", "sh", "-c", "echo $SLURM_STEP_GPUS").strip() == "0,1"
    error = cluster.run("srun", "--gres=gpu:3", "true", code=1)
    assert "Requested node configuration is not available" in error
