"""The same small comparison through every launcher, on nodes: srun with PMIx, mpirun, a heterogeneous job."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.mpi.test_experiments import run_folder, tables
from tests.slurm.checks import SMALL, check_bytes, check_comparison, check_environment
from tests.slurm.conftest import ROOT, VirtualCluster

PATIENCE_S = 240  # a few seconds where the machine has nothing else to do
TWO_NODES = {"client": ["n1"], "prefill": ["n1"], "decode": ["n2"]}
# What launch/env.sh sets in the scripts, for ranks that no script of ours starts.
BY_HAND = {"OMP_NUM_THREADS": "1", "OMPI_MCA_pml": "ob1", "OMPI_MCA_osc": "^ucx", "SLURM_PMIX_FENCE": "ring"}


@pytest.fixture(autouse=True)
def settings(cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("XPYD_PYTHON", sys.executable), ("XPYD_LOG_DIR", str(tmp_path / "logs"))):
        monkeypatch.setitem(cluster.env, name, value)


@pytest.fixture
def by_hand(cluster: VirtualCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in BY_HAND.items():
        monkeypatch.setitem(cluster.env, name, value)


@pytest.mark.usefixtures("by_hand")
def test_srun_starts_the_ranks(cluster: VirtualCluster, tmp_path: Path) -> None:
    """``srun -N2 -n3`` gives the first node two ranks: the client and the prefill worker."""
    program = [sys.executable, "-m", "mpi4py", "-m", "experiments.compare"]
    cluster.run("srun", "-N2", "-n3", "--mpi=pmix", *program, *SMALL, f"run.root={tmp_path}", timeout=PATIENCE_S)
    check_comparison(tmp_path, TWO_NODES)


@pytest.mark.long
def test_the_front_starts_srun(cluster: VirtualCluster, tmp_path: Path) -> None:
    """On the login node: Hydra there, ranks on the nodes, the same run folder."""
    front = [sys.executable, "-m", "experiments.compare", "launch=srun", "launch.args=['-N2','--mpi=pmix']"]
    cluster.run(*front, *SMALL, f"run.root={tmp_path}", timeout=PATIENCE_S)
    check_comparison(tmp_path, TWO_NODES)
    assert "srun" in (run_folder(tmp_path, "compare") / "command.sh").read_text()


@pytest.mark.long
def test_mpirun_starts_the_ranks(cluster: VirtualCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.env, "XPYD_MPIRUN_AGENT", "launch/agent")
    command = ["launch/mpirun.sh", "--hosts", "n3,n4,n1", "compare", "placement=2p1d"]
    cluster.run(*command, *SMALL, f"run.root={tmp_path}", timeout=PATIENCE_S)
    check_comparison(tmp_path, {"client": ["n3"], "prefill": ["n3", "n4"], "decode": ["n1"]})


@pytest.mark.long
def test_prefill_and_decode_in_partitions_of_their_own(cluster: VirtualCluster, tmp_path: Path) -> None:
    """A heterogeneous job: its components may wait for a minute after the results (docs/slurm.md)."""
    sizes = ["-p", "prefill", "-N", "2", f"--output={tmp_path}/job.out", ":", "-p", "decode", "-N", "1"]
    command = [*sizes, "launch/slurm_het.sbatch", "compare", "placement=2p1d"]
    job = cluster.submit(ROOT, *command, *SMALL, f"run.root={tmp_path}")
    assert cluster.finish(job, timeout=PATIENCE_S) == "COMPLETED", (tmp_path / "job.out").read_text()
    check_comparison(tmp_path, {"client": ["n1"], "prefill": ["n1", "n2"], "decode": ["n3"]})


@pytest.mark.long
def test_one_arm_alone(cluster: VirtualCluster, tmp_path: Path) -> None:
    arm = [setting for setting in SMALL if not setting.startswith("num_pairs")]
    job = cluster.submit(
        ROOT, "-N", "2", f"--output={tmp_path}/job.out", "launch/slurm.sbatch", "serve", *arm, f"run.root={tmp_path}"
    )
    assert cluster.finish(job, timeout=PATIENCE_S) == "COMPLETED", (tmp_path / "job.out").read_text()
    folder = run_folder(tmp_path, "serve")
    found = tables(folder)
    check_environment(json.loads((folder / "environment.json").read_text()), TWO_NODES)
    check_bytes(found["blocks"].iloc[0], found["transfers"])
    assert len(found["tokens"]) == 6 * 6
