"""Follows submitted jobs to their end: a progress table on a terminal, a line per change elsewhere.

Following only looks: a Ctrl-C ends the looking, and the jobs go on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from xpyd.slurm import JobState, SlurmError, exit_code, job_states
from xpyd.submit import Point, labels

INTERRUPTED = 130
SILENCE_S = 600.0  # without any answer from Slurm
GONE = JobState("GONE", "", "Slurm has forgotten the job")


@dataclass(frozen=True)
class Progress:
    """What is known of a point now."""

    label: str
    point: Point
    state: JobState

    @property
    def ended(self) -> bool:
        return self.point.job_id is None or self.state.ended or self.state is GONE

    @property
    def blocks(self) -> str:
        planned = self.point.config.planned_blocks
        if not planned:
            return ""
        done = planned if self.point.run_dir.done else len(self.point.run_dir.completed_blocks())
        return f"{done}/{planned} blocks"

    @property
    def status(self) -> str:
        """The state in words; a job that ended before its run did says so."""
        if self.point.run_dir.done and self.ended:
            return "DONE"
        if self.ended:
            return f"{self.state.state}, partial"
        waits = self.state.state == "PENDING" and self.state.reason not in ("", "None")
        return f"{self.state.state} ({self.state.reason})" if waits else self.state.state


def follow(points: Sequence[Point], poll_s: float, again: str) -> int:
    """Look at the jobs until all have ended; the worst exit code, 130 after Ctrl-C. ``again`` is what to type then.

    Raises SlurmError after ten minutes without an answer from Slurm.
    """
    console = Console(stderr=True)
    try:
        if console.is_terminal:
            with Live(console=console, refresh_per_second=4) as live:
                for seen in _watch(points, poll_s):
                    live.update(_table(seen))
        else:
            _print_changes(_watch(points, poll_s))
    except KeyboardInterrupt:
        print(f"the jobs go on; follow them again with:\n  {again}", file=sys.stderr, flush=True)
        return INTERRUPTED
    return max(_conclude(point) for point in points)


def _watch(points: Sequence[Point], poll_s: float) -> Iterable[list[Progress]]:
    names, answered_at = labels(points), time.monotonic()
    while True:
        try:
            states, answered_at = job_states(), time.monotonic()
            seen = [
                Progress(name, point, states.get(point.job_id or "", GONE))
                for name, point in zip(names, points, strict=True)
            ]
            yield seen
            if all(progress.ended for progress in seen):
                return
        except SlurmError:
            if time.monotonic() - answered_at > SILENCE_S:
                raise
        time.sleep(poll_s)


def _table(seen: Sequence[Progress]) -> Table:
    table = Table("point", "job", "state", "elapsed", "done", "run folder")
    for progress in seen:
        point = progress.point
        words = (progress.label, point.job_id or "-", progress.status, progress.state.elapsed, progress.blocks)
        table.add_row(*map(escape, (*words, str(point.run_dir.path))))
    return table


def _print_changes(watched: Iterable[list[Progress]]) -> None:
    shown: dict[str, str] = {}
    for seen in watched:
        for progress in seen:
            text = f"{progress.label}  {progress.status}  {progress.blocks}".rstrip()
            key = str(progress.point.run_dir.path)
            if shown.get(key) != text:
                print(f"job {progress.point.job_id or '-'}  {text}", file=sys.stderr, flush=True)
                shown[key] = text


def _conclude(point: Point) -> int:
    """Where the results of a point are, or what became of it; its exit code."""
    folder = point.run_dir.path
    if point.run_dir.done:
        page = folder / "report.html"
        print(f"results: {page if page.exists() else folder}", flush=True)
        return 0
    code = (exit_code(point.job_id) if point.job_id else None) or 1
    print(
        f"error: job {point.job_id} ended (exit code {code}) before its run did; its words are in "
        f"{folder}/job-{point.job_id}.out, and the same command goes on with the run",
        file=sys.stderr,
        flush=True,
    )
    return code
