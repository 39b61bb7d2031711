"""The preflight on real ranks: a healthy machine, and each way of being sick, found within its bound and named."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.mpi.test_experiments import plain, run_folder

SICK = str(Path(__file__).parent / "programs" / "sick_cluster.py")
QUICK = ["placement.allow_shared_node=true", "check.num_pieces=4", "check.num_repeats=2"]
Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.mpi


def findings(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run_folder(root, "check_cluster") / "findings.json").read_text())
    return content


def by_check(content: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {finding["check"]: finding for finding in content["findings"]}


@pytest.mark.parametrize("transport", ["mpi", "ucx"])
def test_a_healthy_machine_has_no_errors(mpirun: Run, tmp_path: Path, transport: str) -> None:
    done = mpirun(3, ["-m", "experiments.check_cluster", *QUICK, f"transport={transport}", f"run.root={tmp_path}"], 100)
    assert done.returncode == 0, done.stdout + done.stderr
    content = findings(tmp_path)
    assert content["num_errors"] == 0
    assert [rank["role"] for rank in content["ranks"]] == ["client", "prefill", "decode"]
    (pair,) = content["pairs"]
    assert pair["route"] == {"mpi": "unknown", "ucx": "tcp/lo"}[transport]
    assert pair["echo_s"] > 0
    assert pair["rate_bytes_per_s"] > 0
    found = by_check(content)
    assert found["roles"]["level"] == "warning", "all on one node"
    for check in ("library", "fabric", "echo", "GPU-direct", "shared run.root", "same on all nodes"):
        assert check in found
    assert "checksums right: 1->2" in done.stdout
    assert (run_folder(tmp_path, "check_cluster") / "DONE").exists()


def test_plain_it_starts_the_ranks_and_reads_back(tmp_path: Path) -> None:
    """Two roles on one node without leave are an error; pairs are probed nevertheless, and the report reads it."""
    done = plain("check_cluster", *QUICK, "placement.allow_shared_node=false", f"run.root={tmp_path}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "not ready: 1 error" in done.stderr
    content = findings(tmp_path)
    assert by_check(content)["roles"]["level"] == "error"
    assert "placement.allow_shared_node=true" in by_check(content)["roles"]["remedy"]
    assert content["pairs"][0]["echo_s"] > 0
    from analysis.report import main

    assert main([str(run_folder(tmp_path, "check_cluster"))]) == 0
    page = (run_folder(tmp_path, "check_cluster") / "report.html").read_text()
    assert "placement.allow_shared_node=true" in page


def test_a_wrong_number_of_ranks_is_a_finding_among_others(mpirun: Run, tmp_path: Path) -> None:
    done = mpirun(2, ["-m", "experiments.check_cluster", *QUICK, f"run.root={tmp_path}"], 60)
    assert done.returncode == 2
    content = findings(tmp_path)
    assert "needs 3 ranks" in by_check(content)["roles"]["found"]
    assert content["pairs"] == []
    assert by_check(content)["shared run.root"]["level"] == "ok"


def sick(mpirun: Run, root: Path, what: str, num_ranks: int) -> tuple[str, dict[str, Any]]:
    """What was said on stderr, and the findings; every worker but the last prefills."""
    placement = f"placement.num_prefill={num_ranks - 2}"
    done = mpirun(num_ranks, [SICK, what, *QUICK, "check.timeout_s=5", placement, f"run.root={root}"], 100)
    assert done.returncode != 0, done.stdout
    return done.stderr, findings(root)


@pytest.mark.long
def test_silent_and_lying_peers_are_named_and_the_other_pair_is_probed(mpirun: Run, tmp_path: Path) -> None:
    _, content = sick(mpirun, tmp_path, "wires", 5)
    found = by_check(content)
    assert found["connection 1->4"]["level"] == "error"
    assert "firewall" in found["connection 1->4"]["remedy"]
    assert "arrived at the destination with the wrong checksum" in found["echo 2->4"]["found"]
    assert "bytes changed on the way" in found["echo 2->4"]["remedy"]
    silent, lying, well = content["pairs"]
    assert (silent["echo_s"], silent["rate_bytes_per_s"]) == (None, None)
    assert (lying["route"], lying["rate_bytes_per_s"]) == ("tcp/lo", None)
    assert well["rate_bytes_per_s"] > 0


def test_a_stuck_rank_ends_the_check_with_the_stage(mpirun: Run, tmp_path: Path) -> None:
    said, content = sick(mpirun, tmp_path, "stuck", 4)
    assert by_check(content)["no end"]["found"].startswith("placement: not done after 2 s")
    assert "error: rank 0: placement: no end after 2 s" in said


def test_a_rank_out_of_reach_over_mpi_is_named_before_any_collective(mpirun: Run, tmp_path: Path) -> None:
    _, content = sick(mpirun, tmp_path, "deaf", 4)
    found = by_check(content)["reach"]
    assert "ranks 0 and 2, 1 and 2, 2 and 3 did not hear each other" in found["found"]
    assert "firewall" in found["remedy"]


def test_help_says_what_it_is_for() -> None:
    text = plain("check_cluster", "--help").stdout
    for word in ("Is this cluster ready?", "check.strict", "min_rate_share", "sbatch -N 3"):
        assert word in text
