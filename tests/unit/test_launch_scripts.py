"""The launch scripts without a cluster: which command they would run, and what they refuse."""

from __future__ import annotations

import os
import pwd
import shlex
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
VERSIONS = {
    "openmpi4": "mpirun (Open MPI) 4.1.4",
    "openmpi5": "mpirun (Open MPI) 5.0.11",
    "mpich": "HYDRA build details:\n    Version: 4.2.0",
    "intel": "Intel(R) MPI Library for Linux* OS, Version 2021.11",
}


def outputs(*command: str, code: int = 0, cwd: Path = ROOT, **env: str) -> tuple[str, str]:
    """stdout and stderr of a script that must end with ``code``."""
    keep = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(command, cwd=cwd, env={**keep, **env}, **CAPTURED)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def call(*command: str, code: int = 0, cwd: Path = ROOT, **env: str) -> str:
    """stdout of a script that must end with ``code``; stderr where it must fail."""
    said, errors = outputs(*command, code=code, cwd=cwd, **env)
    return said if code == 0 else errors


@pytest.fixture
def mpirun(tmp_path: Path) -> Path:
    """A stand-in that knows its version and shows what is in the host file it is given."""
    program = tmp_path / "mpirun"
    program.write_text(
        '#!/bin/bash\nif [[ $1 == --version ]]; then echo "$VERSION"; exit; fi\n'
        "for ((i = 1; i < $#; i++)); do\n"
        '  if [[ ${!i} == -f || ${!i} == --hostfile ]]; then j=$((i + 1)); cat "${!j}"; fi\n'
        "done\n"
        'printf "%q " "$@"\n'
    )
    program.chmod(0o755)
    return program


def started(mpirun: Path, family: str, *arguments: str, **env: str) -> tuple[list[str], list[str]]:
    """(lines of the host file, options of mpirun)."""
    fixed = {"VERSION": VERSIONS[family], "XPYD_MPIRUN": str(mpirun), "XPYD_LOG_DIR": str(mpirun.parent / "logs")}
    *hosts, options = call(
        "launch/mpirun.sh", *arguments, **{**fixed, "XPYD_PYTHON": "/site/python", **env}
    ).splitlines()
    return hosts, shlex.split(options)


@pytest.mark.parametrize("family", ["openmpi4", "openmpi5"])
def test_open_mpi(mpirun: Path, family: str) -> None:
    hosts, options = started(mpirun, family, "--hosts", "a,b,c", "compare", "placement=2p1d", UCX_TLS="tcp")
    assert hosts == ["a slots=2", "b slots=1", "c slots=1"]
    assert options[options.index("-n") + 1] == "4"
    assert ("-x", "UCX_TLS") in pairwise(options), "ssh passes no environment on"
    program = [
        str(ROOT / "launch/rank.sh"),
        "/site/python",
        "-m",
        "mpi4py",
        "-m",
        "experiments.compare",
        "placement=2p1d",
    ]
    assert options[-len(program) :] == program


@pytest.mark.parametrize("family", ["mpich", "intel"])
def test_mpich_family(mpirun: Path, family: str) -> None:
    hosts, options = started(mpirun, family, "--hosts", "a,b", "serve", XPYD_WORKERS_PER_NODE="2", UCX_TLS="tcp")
    assert hosts == ["a:3", "b:2"]
    assert options[options.index("-n") + 1] == "5"
    assert "UCX_TLS" in options[options.index("-genvlist") + 1].split(",")
    assert "--hostfile" not in options


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("openmpi4", "--mca plm_rsh_agent {agent}"),
        ("openmpi5", "--prtemca plm_ssh_agent {agent}"),
        ("mpich", "-launcher ssh -launcher-exec {agent}"),
    ],
)
def test_the_agent_stands_in_for_ssh(mpirun: Path, family: str, expected: str) -> None:
    _, options = started(mpirun, family, "--hosts", "a", "compare", XPYD_MPIRUN_AGENT="launch/agent")
    assert expected.format(agent=ROOT / "launch/agent") in " ".join(options)


def test_hosts_come_from_a_file_or_the_batch_system(mpirun: Path, tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("# nodes\nb slots=4\na:2\nb\n\n")
    assert started(mpirun, "openmpi5", "--hostfile", str(hostfile), "compare")[0] == ["b slots=2", "a slots=1"]
    assert started(mpirun, "openmpi5", "compare", PBS_NODEFILE=str(hostfile))[0] == ["b slots=2", "a slots=1"]


def test_mistakes_are_named(mpirun: Path) -> None:
    assert "no hosts" in call("launch/mpirun.sh", "compare", code=2)
    assert "no experiment compar; there are:" in call("launch/mpirun.sh", "--hosts", "a", "compar", code=2)
    assert "no such file" in call("launch/mpirun.sh", "--hostfile", "/nowhere", "compare", code=2)
    assert "unknown option --host" in call("launch/mpirun.sh", "--host", "a", "compare", code=2)
    unknown = {"XPYD_MPIRUN": str(mpirun), "VERSION": "mystery 1.0"}
    assert "neither Open MPI nor MPICH: mystery" in call(
        "launch/mpirun.sh", "--hosts", "a", "compare", code=2, **unknown
    )
    zero = {"XPYD_WORKERS_PER_NODE": "0"}
    assert "must be a positive number" in call("launch/mpirun.sh", "--hosts", "a", "compare", code=2, **zero)


def launched(tmp_path: Path, body: str, code: int, **env: str) -> tuple[str, str]:
    """What is printed, to stdout and to stderr, where mpirun is a script of ``body``."""
    program = tmp_path / "mpirun"
    program.write_text(f'#!/bin/bash\nif [[ $1 == --version ]]; then echo "{VERSIONS["openmpi5"]}"; exit; fi\n{body}\n')
    program.chmod(0o755)
    own = {"XPYD_MPIRUN": str(program), "XPYD_PYTHON": "/site/python", "XPYD_LOG_DIR": str(tmp_path / "logs")}
    return outputs("launch/mpirun.sh", "--hosts", "a", "compare", code=code, **own, **env)


FOR_EVER = "exec sleep 1000"


def test_ranks_that_do_not_meet_are_started_once_more(tmp_path: Path) -> None:
    """A launcher that hangs at the first start, not at the second; whatever an earlier job left says nothing."""
    came_up = f'echo came up; if [[ -e {tmp_path}/again ]]; then echo met >"$XPYD_WORLD"; exit 0; fi'
    said, errors = launched(tmp_path, f"{came_up}; touch {tmp_path}/again; {FOR_EVER}", 0, XPYD_MEET_S="1")
    assert said == "came up\ncame up\n"
    assert "the ranks have not met within XPYD_MEET_S=1 s of their start" in errors
    assert errors.endswith("starting them once more\n")


def test_ranks_that_never_meet_end_the_job(tmp_path: Path) -> None:
    said, errors = launched(tmp_path, f"echo came up; {FOR_EVER}", 143, XPYD_MEET_S="1")
    assert said == "came up\ncame up\n"
    assert errors.count("have not met") == 2


@pytest.mark.parametrize("code", [0, 3])
def test_a_launcher_that_outlasts_its_ranks_is_ended(tmp_path: Path, code: int) -> None:
    """The job's code is that of the ranks: srun of a heterogeneous step can hang behind a run that is whole."""
    said, errors = launched(tmp_path, f'echo ended {code} >"$XPYD_WORLD"; {FOR_EVER}', code, XPYD_PART_S="1")
    assert said == ""
    assert f"all ranks ended XPYD_PART_S=1 s ago, and {tmp_path}/mpirun has not; ending it" in errors
    assert ("the ranks ended with exit code 3" in errors) == (code == 3)


def test_a_job_that_ends_is_left_alone(tmp_path: Path) -> None:
    """Its own code counts, and no word of a watch is in its output."""
    slow = 'echo met >"$XPYD_WORLD"; sleep 4; echo ended 0 >"$XPYD_WORLD"'
    assert launched(tmp_path, slow, 0, XPYD_MEET_S="3") == ("", "")
    assert "exit code 5" in launched(tmp_path, "exit 5", 5)[1]


def test_a_dry_run_starts_nothing(mpirun: Path, tmp_path: Path) -> None:
    output = call(
        "launch/mpirun.sh",
        "--hosts",
        "a",
        "compare",
        XPYD_DRY_RUN="1",
        VERSION=VERSIONS["mpich"],
        XPYD_MPIRUN=str(mpirun),
        XPYD_LOG_DIR=str(tmp_path / "logs"),
    )
    assert output.startswith(f"{mpirun} -f ")
    assert not (tmp_path / "logs").exists()


def test_sites_are_composed_and_checked(mpirun: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.sh"
    own.write_text('XPYD_MPIRUN_ARGS+=(--verbose)\nXPYD_WRAP=(wrap "two words")\nexport OMP_NUM_THREADS=7\n')
    site = f"{own},ib"
    _, options = started(mpirun, "openmpi5", "--hosts", "a", "compare", XPYD_SITE=site, XPYD_NICS="mlx5_0:1")
    assert "--verbose" in options
    assert options[options.index("wrap") : options.index("wrap") + 3] == ["wrap", "two words", "/site/python"]
    assert ("-x", "XPYD_NICS") in pairwise(options)
    assert "no profile" in call("launch/mpirun.sh", "--hosts", "a", "compare", code=2, XPYD_SITE="nosuch")
    assert "set XPYD_NICS" in call("launch/mpirun.sh", "--hosts", "a", "compare", code=1, XPYD_SITE="ib")


def test_defaults_yield_to_what_is_set() -> None:
    show = 'source launch/env.sh; echo "$OMP_NUM_THREADS $MKL_NUM_THREADS $SLURM_PMIX_FENCE $OMPI_MCA_pml"'
    assert call("bash", "-euc", show) == "1 1 ring ob1\n"
    assert call("bash", "-euc", show, SLURM_CPUS_PER_TASK="6", SLURM_PMIX_FENCE="tree") == "6 6 tree ob1\n"
    assert call("bash", "-euc", show, OMP_NUM_THREADS="2", OMPI_MCA_pml="ucx") == "2 2 ring ucx\n"


def test_a_home_is_found_where_none_is_set() -> None:
    """``sbatch --export=NONE`` sets none, and Open MPI does not start then."""
    show = "unset HOME; source launch/env.sh; printenv HOME"
    assert call("bash", "-euc", show) == f"{pwd.getpwuid(os.geteuid()).pw_dir}\n"
    assert call("bash", "-euc", "source launch/env.sh; printenv HOME", HOME="/mine") == "/mine\n"


def nic(rank: int, local_rank: int, **env: str) -> str:
    ranks = {"PMIX_RANK": str(rank), "SLURM_LOCALID": str(local_rank), "XPYD_NICS": "mlx5_0:1 mlx5_1:1", **env}
    return call("launch/rank.sh", "bash", "-c", 'echo "${UCX_NET_DEVICES:-any}"', **ranks).strip()


def test_each_worker_gets_the_device_beside_its_gpu() -> None:
    """Client and two workers on the first node, two workers on the second."""
    assert [nic(0, 0), nic(1, 1), nic(2, 2)] == ["any", "mlx5_0:1", "mlx5_1:1"]
    assert [nic(3, 0), nic(4, 1)] == ["mlx5_0:1", "mlx5_1:1"]
    assert nic(3, 2) == "mlx5_0:1", "more workers than devices share them"
    assert nic(3, 0, UCX_NET_DEVICES="mlx5_9:1") == "mlx5_9:1", "what is set wins"


def test_ranks_but_the_first_write_logs(tmp_path: Path) -> None:
    speak = ["launch/rank.sh", "sh", "-c", "echo out; echo err >&2; exit 3"]
    log = str(tmp_path / "logs")
    assert call(*speak, code=3, PMI_RANK="0", XPYD_LOG_DIR=log) == "err\n"
    assert call(*speak, code=3, PMI_RANK="2", XPYD_LOG_DIR=log) == ""
    assert (tmp_path / "logs" / "rank-2.log").read_text() == "out\nerr\n"
    assert "no MPI launcher" in call(*speak, code=1)


def test_the_agent_says_where_it_belongs() -> None:
    assert "usage: agent" in call("launch/agent", "-x", code=2)
    if not Path("/run/xpyd").exists():
        assert "not on a node of a virtual cluster" in call("launch/agent", "-x", "n1", "true", code=255)


@pytest.mark.parametrize(
    ("code", "near_limit", "reached", "requeued"),
    [(0, 1, True, True), (0, 0, True, False), (3, 1, True, False), (1, 0, True, False), (1, 0, False, True)],
)
def test_a_job_goes_back_near_its_limit_or_without_a_node(
    tmp_path: Path, code: int, near_limit: int, reached: bool, requeued: bool
) -> None:
    """Never after a failure of its own. Stand-ins: ``run_ranks``, srun's reach for the nodes, and scontrol."""
    (tmp_path / "srun").write_text(f"#!/bin/sh\n{'true' if reached else 'false'}\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho scontrol $*\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    job = f"""
        source launch/common.sh
        run_ranks() {{ XPYD_NEAR_LIMIT={near_limit}; return {code}; }}
        finish_job ranks"""
    env = {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for requeue, expected in (("1", requeued), ("0", False)):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", job], cwd=ROOT, env={**env, "XPYD_REQUEUE": requeue}, **CAPTURED
        )
        assert done.returncode == code, done.stderr
        assert done.stdout == ("scontrol requeue 12\n" if expected else "")
