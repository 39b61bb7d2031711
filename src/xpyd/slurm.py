"""Slurm's side of a submission: the sbatch command of a run, and what squeue and scontrol say of its job.

Jobs are followed with ``squeue --states=all``: ``sbatch --wait`` cannot follow several, and sacct is missing on many
sites.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le

from xpyd.placement import PlacementConfig, PlacementError

ASK_TIMEOUT_S = 60.0
ENDED = frozenset(
    ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
)
# Settings of the launch scripts that a job keeps, so that job.sh submits the same job from any other shell.
KEPT = ("XPYD_SITE", "XPYD_PYTHON", "XPYD_SRUN_MPI", "XPYD_MEET_S", "XPYD_PART_S")


class SlurmError(ValueError):
    """Slurm refused a job or did not answer; the message holds its words."""


@dataclass(frozen=True)
class SlurmConfig:
    """What a submitted job asks for. Empty: the site's default."""

    partition: str | None = None
    prefill_partition: str | None = None  # with decode_partition: a heterogeneous job over both
    decode_partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_limit_min: Annotated[int, Gt(0)] | None = None
    stop_before_s: Annotated[int, Ge(1), Le(65535)] = 60  # before the limit: admit nothing more, drain, write
    requeue: bool = True  # near the limit, or after a node was lost: back into the queue, to go on at the next block
    workers_per_node: Annotated[int, Gt(0)] = 1
    poll_s: Annotated[float, Gt(0)] = 5.0  # with launch.wait: how often Slurm is asked

    def __post_init__(self) -> None:
        if (self.prefill_partition is None) != (self.decode_partition is None):
            raise ValueError(
                f"prefill_partition={self.prefill_partition!r}, decode_partition={self.decode_partition!r}: a "
                "heterogeneous job needs both; for a job on one partition set partition alone"
            )
        if self.heterogeneous and self.partition is not None:
            raise ValueError(
                f"partition={self.partition!r} beside prefill_partition and decode_partition: give one or the other"
            )

    @property
    def heterogeneous(self) -> bool:
        return self.prefill_partition is not None

    def num_nodes(self, placement: PlacementConfig) -> tuple[int, ...]:
        """Nodes of each component of the job. Raises PlacementError where workers do not fill whole nodes."""
        pools = [("placement.num_colocated", placement.num_colocated)]
        if not placement.num_colocated:
            pools = [("placement.num_prefill", placement.num_prefill), ("placement.num_decode", placement.num_decode)]
        elif self.heterogeneous:
            raise PlacementError(
                f"launch.slurm.prefill_partition={self.prefill_partition!r} with placement {placement.name}: colocated "
                "workers need one partition, set launch.slurm.partition"
            )
        if placement.allow_shared_node and not self.heterogeneous:
            pools = [("placement.num_prefill + num_decode", placement.num_workers)]
        for key, number in pools:
            if number % self.workers_per_node:
                raise PlacementError(
                    f"launch.slurm.workers_per_node={self.workers_per_node} does not divide {key}={number}: roles take "
                    "whole nodes; choose a divisor, or 1"
                )
        nodes = tuple(number // self.workers_per_node for _, number in pools)
        return nodes if self.heterogeneous else (sum(nodes),)


@dataclass(frozen=True)
class JobState:
    """What squeue says of a job; ``elapsed`` in Slurm's words, ``reason`` why it waits."""

    state: str
    elapsed: str
    reason: str

    @property
    def ended(self) -> bool:
        return self.state in ENDED


def sbatch_options(config: SlurmConfig, placement: PlacementConfig, folder: Path, extra: Sequence[str]) -> list[str]:
    """sbatch's options for a run in ``folder``; ``extra`` come last and win. Raises PlacementError."""
    every = [f"--{key}={value}" for key in ("account", "qos") if (value := getattr(config, key))]
    if config.time_limit_min is not None:
        every.append(f"--time={config.time_limit_min}")
    output = str(folder).replace("%", "%%")  # sbatch reads % as the begin of a pattern
    first = [
        f"--job-name=xpyd-{re.sub(r'[^A-Za-z0-9._-]+', '_', folder.name)}",
        f"--output={output}/job-%j.out",
        f"--signal=B:USR1@{config.stop_before_s}",
    ]
    nodes = config.num_nodes(placement)
    if not config.heterogeneous:
        first += ["--requeue" if config.requeue else "--no-requeue", f"--nodes={nodes[0]}"]
        partition = [f"--partition={config.partition}"] if config.partition else []
        return [*first, *partition, *every, *extra]
    prefill = [f"--partition={config.prefill_partition}", f"--nodes={nodes[0]}", *every, *extra]
    decode = [f"--partition={config.decode_partition}", f"--nodes={nodes[1]}", *every, *extra]
    return [*first, *prefill, ":", *decode]


def job_script(
    config: SlurmConfig, experiment: str, options: Sequence[str], root: Path, folder: Path, python: str
) -> str:
    """The script that submits the run in ``folder``, prints the job's id, and can be used again by hand."""
    settings = {"XPYD_PYTHON": python} if "XPYD_SITE" not in os.environ else {}
    settings |= {name: os.environ[name] for name in KEPT if name in os.environ}
    settings |= {
        "XPYD_ROOT": str(root),
        "XPYD_LOG_DIR": str(folder / "logs"),
        "XPYD_WORKERS_PER_NODE": str(config.workers_per_node),
        "XPYD_REQUEUE": str(int(config.requeue and not config.heterogeneous)),
    }
    script = "launch/slurm_het.sbatch" if config.heterogeneous else "launch/slurm.sbatch"
    return "\n".join(
        (
            "#!/bin/sh",
            "# Submits this run to Slurm and prints the job's id. Submitted again, the run goes on at its next block.",
            "# More options of sbatch may follow: sh job.sh --begin=now+1hour",
            "set -eu",
            f"cd {shlex.quote(str(root))}",
            *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
            'exec sbatch --parsable "$@" \\',
            *(f"  {shlex.quote(option)} \\" for option in options),
            f"  {script} {shlex.quote(experiment)} --run-folder {shlex.quote(str(folder))} --report",
            "",
        )
    )


def submit_script(script: str, *more: str) -> str:
    """Run a job script, with ``more`` options of sbatch; the id of its job, or what ``--test-only`` says."""
    done = _run(["sh", "-c", script, "job.sh", *more])
    if done.returncode:
        raise SlurmError(f"sbatch refused the job: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0] or done.stderr.strip()


def job_states() -> dict[str, JobState]:
    """This user's jobs by id, ended ones too as long as Slurm remembers them. Raises SlurmError.

    A heterogeneous job has the state of its first component.
    """
    done = _run(["squeue", "--noheader", "--states=all", f"--user={os.geteuid()}", "--format=%i|%T|%M|%r"])
    if done.returncode:
        raise SlurmError(f"squeue: {done.stderr.strip()}")
    found: dict[str, JobState] = {}
    for line in done.stdout.splitlines():
        job, state, elapsed, reason = line.split("|", 3)
        found.setdefault(job.removesuffix("+0"), JobState(state, elapsed, reason))
    return found


def exit_code(job_id: str) -> int | None:
    """The exit code of an ended job (128 + signal where one ended it); None when Slurm has forgotten it."""
    found = re.search(r"\bExitCode=(\d+):(\d+)", _run(["scontrol", "show", "job", job_id]).stdout)
    return None if found is None else int(found[1]) or (128 + int(found[2]) if int(found[2]) else 0)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S)
    except FileNotFoundError:
        raise SlurmError(f"no program {command[0]} here; launch=slurm works on a login node of a cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} gave no answer within {ASK_TIMEOUT_S:.0f} s") from None
