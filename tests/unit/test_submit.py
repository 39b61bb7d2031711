"""Submission without a cluster: which job a configuration becomes, what is skipped, and what Slurm's words mean."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.unit.test_config import composed
from xpyd.config.base import ConfigError, Ranked
from xpyd.config.load import load_config
from xpyd.follow import follow
from xpyd.launcher import rank_environment
from xpyd.placement import PlacementConfig, PlacementError
from xpyd.records import BlockRow
from xpyd.resume import digest, open_run, run_name
from xpyd.run_dir import RowWriter, RunDir
from xpyd.slurm import SlurmConfig, SlurmError, job_script, job_states, sbatch_options
from xpyd.submit import Point, dry_run, labels, print_points, submit

ROOT = Path(__file__).parents[2]
SBATCH = """#!/bin/bash
printf '%s\\0' "$@" >"$CALLS/sbatch.$(ls "$CALLS" | wc -l)"
env -0 >"$CALLS/environment"
if [[ " $* " == *" --test-only "* ]]; then echo "sbatch: Job 7 to start" >&2; else echo "${JOB:-7};cluster"; fi
"""
HOSTILE = 'it\'s "$(touch pwned)" `touch pwned`; touch pwned & %j'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for sbatch, which keeps its arguments, and for squeue and scontrol, which show files of this folder."""
    bin_folder, calls = tmp_path / "bin", tmp_path / "calls"
    for folder in (bin_folder, calls):
        folder.mkdir()
    scripts = {"sbatch": SBATCH, "squeue": 'cat "$CALLS/../queue"\n', "scontrol": 'cat "$CALLS/../job"\n'}
    for name, script in scripts.items():
        (bin_folder / name).write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}")
        (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(calls))
    for name in ("XPYD_SITE", "XPYD_PYTHON", "XPYD_SRUN_MPI", "XPYD_MEET_S", "XPYD_PART_S", "XPYD_JOB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue").touch()
    (tmp_path / "job").touch()
    return tmp_path


def calls(slurm: Path) -> list[list[str]]:
    """The arguments of every sbatch so far."""
    return [path.read_text().split("\0")[:-1] for path in sorted((slurm / "calls").glob("sbatch.*"))]


def config(*overrides: str, root: Path | str = "runs") -> Ranked:
    found = load_config(composed("compare", "launch=slurm", *overrides) | {"run": {"root": str(root)}})
    assert isinstance(found, Ranked)
    return found


def end_block(run_dir: RunDir, block: int) -> None:
    with RowWriter(RunDir(run_dir.path, run_dir.next_attempt()), 0) as rows:
        rows.write(BlockRow(block, 0, "colocated", 0, 1, 1, 0, 0, 0, -1))


def test_the_digest_is_of_what_is_measured() -> None:
    base = composed("compare")
    assert digest(base) == digest(composed("compare", "run.root=elsewhere", "launch=srun", "run.report=false"))
    assert digest(base) != digest(composed("compare", "workload.seed=7"))
    assert digest(base) != digest(composed("compare", "transport=mpi"))


@pytest.mark.parametrize("overrides", [[], ["transfer=whole"], ["fabric.rate_gbps=0.00001"], ["workload=bursty"]])
def test_a_frozen_configuration_keeps_its_digest(tmp_path: Path, overrides: list[str]) -> None:
    found = config(*overrides, root=tmp_path)
    run_dir = open_run(found)
    assert run_dir.path.name == run_name(found)
    assert run_dir.path.name.endswith(digest(run_dir.read_config()))
    assert open_run(found).path == run_dir.path


def test_a_requeued_job_finds_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What launch/slurm.sbatch starts composes again after a requeue; a first start makes a new folder."""
    monkeypatch.setenv("XPYD_JOB", "slurm-12")
    first = open_run(config(root=tmp_path))
    assert first.path.name.startswith("slurm-12-")
    with pytest.raises(FileExistsError, match=r"run\.resume=true"):
        open_run(config(root=tmp_path))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert open_run(config(root=tmp_path)).path == first.path


def test_another_configuration_under_the_same_name_is_refused(tmp_path: Path) -> None:
    def named(*overrides: str) -> Ranked:
        run = {"root": str(tmp_path), "name": "mine", "resume": True}
        found = load_config(composed("compare", *overrides) | {"run": run})
        assert isinstance(found, Ranked)
        return found

    open_run(named())
    open_run(named("launch=mpirun"))
    with pytest.raises(ConfigError, match=r"workload\.seed=7 \(there: 0\); choose another run\.name"):
        open_run(named("workload.seed=7"))


def test_no_word_of_a_user_runs_as_shell(slurm: Path) -> None:
    root = slurm / HOSTILE
    launch = {"kind": "slurm", "args": [HOSTILE], "slurm": {"account": HOSTILE}}
    found = load_config(composed("compare") | {"run": {"root": str(root)}, "launch": launch})
    assert isinstance(found, Ranked)
    point = submit(found, ())
    folder = str(root / "compare" / str(run_name(found)))
    (words,) = calls(slurm)
    assert f"--output={folder.replace('%', '%%')}/job-%j.out" in words
    assert f"--account={HOSTILE}" in words
    assert HOSTILE in words
    assert words[-5:] == ["launch/slurm.sbatch", "compare", "--run-folder", folder, "--report"]
    assert f"XPYD_LOG_DIR={folder}/logs" in (slurm / "calls/environment").read_text().split("\0")
    assert not list(slurm.rglob("pwned"))
    assert not list(ROOT.glob("pwned"))
    assert point.job_id == "7"
    assert (point.run_dir.path / "config.yaml").exists(), "frozen before the job can start"


def test_a_second_call_skips_what_is_done_and_what_still_runs(slurm: Path) -> None:
    point = submit(config(), ())
    (slurm / "queue").write_text("7|RUNNING|0:05|None\n8|PENDING|0:00|Priority\n")
    again = submit(config(), ())
    assert (again.job_id, again.note) == ("7", "not submitted again: job is RUNNING")
    (slurm / "queue").write_text("7|TIMEOUT|1:00|TimeLimit\n")
    end_block(point.run_dir, 0)
    third = submit(config("launch.slurm.time_limit_min=90"), ())
    assert third.note == "submitted: 1 of 15 blocks are done"
    assert third.run_dir.path == point.run_dir.path
    assert "--time=90" in calls(slurm)[1]
    assert third.run_dir.read_config()["launch"]["slurm"]["time_limit_min"] == 90
    third.run_dir.finish()
    assert submit(config(), ()).note == "done already: skipped"
    assert len(calls(slurm)) == 2


def test_resume_false_measures_again(slurm: Path) -> None:
    found = load_config(composed("compare", "launch=slurm", "run.resume=false"))
    assert isinstance(found, Ranked)
    assert submit(found, ()).run_dir.path != submit(found, ()).run_dir.path
    assert len(calls(slurm)) == 2


def test_a_dry_run_asks_slurm_and_creates_nothing(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(config()) == 0
    (words,) = calls(slurm)
    assert "--test-only" in words
    output, errors = capsys.readouterr()
    assert output.startswith("#!/bin/sh\n")
    assert "Job 7 to start" in errors
    assert not (slurm / "runs").exists()


def test_what_sbatch_says_is_shown(slurm: Path) -> None:
    (slurm / "bin/sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: nosuch' >&2\nexit 1\n")
    with pytest.raises(SlurmError, match="sbatch refused the job: sbatch: error: invalid partition: nosuch"):
        submit(config("launch.slurm.partition=nosuch"), ())
    (slurm / "bin/squeue").unlink()
    with pytest.raises(SlurmError, match=r"squeue.*login node"):
        _without(slurm / "bin")


def _without(bin_folder: Path) -> None:
    """Ask squeue where there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(bin_folder))
        job_states()


@pytest.mark.parametrize(("workers", "expected"), [({"num_prefill": 2, "num_decode": 1}, 3), ({"num_colocated": 4}, 4)])
def test_nodes_follow_the_placement(workers: dict[str, int], expected: int) -> None:
    assert SlurmConfig().num_nodes(PlacementConfig(**workers)) == (expected,)


def test_several_workers_share_a_node_only_with_their_role() -> None:
    two = SlurmConfig(workers_per_node=2)
    assert two.num_nodes(PlacementConfig(num_prefill=2, num_decode=4)) == (3,)
    with pytest.raises(PlacementError, match=r"workers_per_node=2 does not divide placement\.num_decode=1"):
        two.num_nodes(PlacementConfig(num_prefill=2, num_decode=1))
    assert two.num_nodes(PlacementConfig(num_prefill=1, num_decode=1, allow_shared_node=True)) == (1,)


def test_two_partitions_make_a_heterogeneous_job() -> None:
    both = SlurmConfig(prefill_partition="big", decode_partition="gpu", account="me", time_limit_min=30)
    options = sbatch_options(both, PlacementConfig(num_prefill=2, num_decode=1), Path("/r/x"), ("--mem=1G",))
    prefill, decode = options[: options.index(":")], options[options.index(":") + 1 :]
    assert {"--partition=big", "--nodes=2", "--account=me", "--time=30", "--mem=1G"} <= set(prefill)
    assert set(decode) == {"--partition=gpu", "--nodes=1", "--account=me", "--time=30", "--mem=1G"}
    with pytest.raises(PlacementError, match="colocated"):
        both.num_nodes(PlacementConfig(num_colocated=2))
    with pytest.raises(ValueError, match=r"needs both"):
        SlurmConfig(prefill_partition="big")


def test_a_job_script_keeps_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XPYD_PYTHON", raising=False)
    monkeypatch.setenv("XPYD_SITE", "modules,ib")
    script = job_script(SlurmConfig(), "compare", (), Path("/x"), Path("/r"), "/login/python")
    assert "export XPYD_SITE=modules,ib\n" in script
    assert "XPYD_PYTHON" not in script, "the site's profile chooses"


def test_slurm_settings_are_refused_elsewhere() -> None:
    for override in ("+launch.wait=true", "+launch.slurm.partition=gpu"):
        with pytest.raises(ConfigError, match="launch=slurm only"):
            load_config(composed("compare", "launch=srun", override))


def test_ranks_get_the_defaults_of_the_launch_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_PMIX_FENCE", raising=False)
    monkeypatch.setenv("OMPI_MCA_pml", "ucx")
    monkeypatch.setenv("MINE", "a=b\nc")
    found = rank_environment(ROOT)
    assert (found["SLURM_PMIX_FENCE"], found["OMPI_MCA_mpi_yield_when_idle"]) == ("ring", "1")
    assert (found["OMPI_MCA_pml"], found["MINE"]) == ("ucx", "a=b\nc"), "what is set wins"


def points(slurm: Path, *seeds: int) -> list[Point]:
    """Submitted points, jobs 1, 2, ..."""
    found = []
    for job, seed in enumerate(seeds, start=1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JOB", str(job))
            found.append(submit(config(f"workload.seed={seed}"), ("model=tiny", f"workload.seed={seed}")))
    return found


def test_labels_name_what_differs(slurm: Path) -> None:
    assert labels(points(slurm, 1, 2)) == ["workload.seed=1", "workload.seed=2"]
    (alone,) = points(slurm, 1)
    assert labels([alone]) == [alone.run_dir.path.name]


def test_following_ends_with_the_worst_code(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = points(slurm, 1, 2)
    first.run_dir.finish()
    end_block(second.run_dir, 0)
    (slurm / "queue").write_text("1|COMPLETED|0:09|None\n2|FAILED|0:05|NonZeroExitCode\n")
    (slurm / "job").write_text("JobId=2 JobState=FAILED ExitCode=3:0 DerivedExitCode=0:0\n")
    assert follow([first, second], 0.01, "again") == 3
    output, errors = capsys.readouterr()
    assert "job 1  workload.seed=1  DONE  15/15 blocks" in errors
    assert "job 2  workload.seed=2  FAILED, partial  1/15 blocks" in errors
    assert f"error: job 2 ended (exit code 3) before its run did; its words are in {second.run_dir.path}" in errors
    assert output == f"results: {first.run_dir.path}\n"


def test_a_job_that_slurm_forgot_is_judged_by_its_folder(slurm: Path) -> None:
    first, second = points(slurm, 1, 2)
    for point in (first, second):
        point.run_dir.finish()
    assert follow([first, second], 0.01, "again") == 0
    (third,) = points(slurm, 3)
    assert follow([third], 0.01, "again") == 1


def test_an_interrupt_leaves_the_jobs_alone(slurm: Path) -> None:
    (slurm / "queue").write_text("7|RUNNING|0:09|None\n")
    words = ["launch=slurm", "launch.wait=true", "launch.slurm.poll_s=0.05", f"run.root={slurm}/runs"]
    child = _start(words)
    assert child.stderr is not None
    line = child.stderr.readline()
    assert "RUNNING  0/15 blocks" in line
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "the jobs go on; follow them again with:\n  python -m experiments.compare launch=slurm" in errors
    assert not (slurm / "calls" / "scancel").exists()


def _start(overrides: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.compare", *overrides]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_brackets_in_a_label_are_shown_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    overrides = (("fabric.net_devices=[eth0]",), ("fabric.net_devices=[ib0]",))
    points = [Point(each, config(root=tmp_path), RunDir(tmp_path), "7", "submitted") for each in overrides]
    print_points(points)
    shown = capsys.readouterr().out
    assert "net_devices=[eth0]" in shown
    assert "net_devices=[ib0]" in shown
