"""What the demo says while it works: progress bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from launch.slurm_demo.jobs import Progress


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def following() -> Iterator[Callable[[Progress], None]]:
    """A function that shows a job's progress; call it as often as you like."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    words = TextColumn("{task.description}")
    with Bars(words, BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn(), console=console) as bars:
        yield _bars(bars)


def _lines() -> Callable[[Progress], None]:
    """A line whenever something has changed."""
    last = ""

    def show(now: Progress) -> None:
        nonlocal last
        line = f"job {now.job_id}, link {now.rate}: {_words(now)}"
        if line != last:
            say(line)
        last = line

    return show


def _bars(bars: Bars) -> Callable[[Progress], None]:
    """A bar per job."""
    tasks: dict[str, TaskID] = {}

    def show(now: Progress) -> None:
        if now.job_id not in tasks:
            tasks[now.job_id] = bars.add_task(f"job {now.job_id}, link {now.rate}", total=None, what="")
        total = now.num_blocks or None  # unknown before the first block: the bar only pulses
        bars.update(tasks[now.job_id], completed=now.blocks_done, total=total, what=_words(now))

    return show


def _words(now: Progress) -> str:
    if now.state == "RUNNING" and not now.num_blocks:
        return "running: starts ranks, calibrates, warms up"
    if now.state == "RUNNING":
        return f"running: block {now.blocks_done}/{now.num_blocks}"
    return now.state.lower()
