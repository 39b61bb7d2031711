"""Submission: one Slurm job per point of a sweep, each on a run folder of its own that a second call finds again.

The configuration is frozen into the folder before the job is submitted, and the job's ranks read it there; ``job.sh``
beside it is the submission itself. A point that is done is skipped; one whose job still runs is not submitted twice.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from xpyd.compose import ROOT
from xpyd.config.base import Ranked
from xpyd.lock import hold
from xpyd.resume import find_run, open_run, run_name
from xpyd.run_dir import RunDir
from xpyd.slurm import JobState, job_script, job_states, sbatch_options, submit_script

JOB_ID = "job_id"  # the file in the run folder that holds the id of the last job submitted for it
LOCK_PATIENCE_S = 60.0  # another call that submits the same point is done by then


@dataclass(frozen=True)
class Point:
    """One point of a sweep on its run folder; ``job_id`` is None where nothing is left to do."""

    overrides: tuple[str, ...]
    config: Ranked
    run_dir: RunDir
    job_id: str | None
    note: str


def submit(config: Ranked, overrides: Sequence[str]) -> Point:
    """Submit one point, or say why there was no need to.

    Raises PlacementError, SlurmError, ConfigError, FileExistsError and InUseError.
    """
    sbatch_options(config.launch.slurm, config.placement, Path(), ())  # refuse before a folder is made
    found = find_run(config)
    run_dir = RunDir((found or open_run(config)).path.resolve())

    def point(job_id: str | None, note: str) -> Point:
        return Point(tuple(overrides), config, run_dir, job_id, note)

    with hold(run_dir.path / "submit.lock", LOCK_PATIENCE_S):
        if run_dir.done:
            return point(None, "done already: skipped")
        if (active := active_job(run_dir)) is not None:
            return point(active[0], f"not submitted again: job is {active[1].state}")
        done = len(run_dir.completed_blocks())
        if found is not None:
            open_run(config)  # freezes what may be new: run.* and launch.*
        script = script_of(config, run_dir.path)
        run_dir.write_text("job.sh", script)
        job_id = submit_script(script)
        run_dir.write_text(JOB_ID, f"{job_id}\n")
    return point(job_id, f"submitted: {done} of {config.planned_blocks} blocks are done" if done else "submitted")


def active_job(run_dir: RunDir) -> tuple[str, JobState] | None:
    """The job that was submitted for the folder, while it waits or runs. Raises SlurmError."""
    path = run_dir.path / JOB_ID
    if not path.exists():
        return None
    job_id = path.read_text().strip()
    state = job_states().get(job_id)
    return None if state is None or state.ended else (job_id, state)


def dry_run(config: Ranked) -> int:
    """Print the job script and ask Slurm whether it would take the job; nothing is created. Raises SlurmError."""
    folder = Path(config.run.root).resolve() / config.experiment / (run_name(config) or "RUN")
    script = script_of(config, folder)
    print(script)
    print(submit_script(script, "--test-only"), file=sys.stderr)
    return 0


def script_of(config: Ranked, folder: Path) -> str:
    launch = config.launch
    options = sbatch_options(launch.slurm, config.placement, folder, launch.args)
    return job_script(launch.slurm, config.experiment, options, ROOT, folder, sys.executable)


def print_points(points: Sequence[Point]) -> None:
    """The table of what was submitted; plain lines where the output is no terminal."""
    rows = [
        (label, point.job_id or "-", point.note, str(point.run_dir.path))
        for label, point in zip(labels(points), points, strict=True)
    ]
    console = Console()
    if not console.is_terminal:
        for row in rows:
            print("  ".join(row), flush=True)
        return
    table = Table("point", "job", "", "run folder")
    for row in rows:
        table.add_row(*map(escape, row))  # [eth0] in a label is no markup
    console.print(table)


def labels(points: Sequence[Point]) -> list[str]:
    """What tells each point from the others: its overrides without those that all have; else its folder's name."""
    shared = set.intersection(*(set(point.overrides) for point in points))
    own = [" ".join(word for word in point.overrides if word not in shared) for point in points]
    return [label or point.run_dir.path.name for label, point in zip(own, points, strict=True)]
