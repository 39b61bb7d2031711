"""A job per link: shape the links, submit the comparison with sbatch, follow it to its end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.virtual_cluster.cluster import Cluster
from launch.virtual_cluster.links import Links
from launch.virtual_cluster.spec import LOGIN

POLL_S = 0.5
WAITING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING"}
BLOCK = re.compile(r"^block (\d+)/(\d+) ", re.MULTILINE)
LOG_TAIL_LINES = 25


class JobError(RuntimeError):
    """A job of the demo did not complete; the message holds the end of its output."""


@dataclass(frozen=True)
class Progress:
    """How far a job is: Slurm's state, and the blocks that its output reports (0 of 0 before the first)."""

    rate: str
    job_id: str
    state: str
    blocks_done: int
    num_blocks: int


@dataclass(frozen=True)
class Demo:
    """The comparison, submitted from the checkout ``root``; run folders go to ``runs``, named ``name``-RATE."""

    cluster: Cluster
    root: Path
    runs: Path
    name: str

    def measure(self, rate: str, overrides: Sequence[str], show: Callable[[Progress], None]) -> Path:
        """The run folder of the comparison with all links at ``rate``. Raises JobError."""
        return self.play("compare", rate, f"{self.name}-{rate}", ["+preset=slurm_demo", *overrides], show)

    def play(
        self,
        experiment: str,
        rate: str,
        run_name: str,
        overrides: Sequence[str],
        show: Callable[[Progress], None],
        num_nodes: int | None = None,
    ) -> Path:
        """The folder ``run_name`` of any experiment, run as a job with all links at ``rate``. Raises JobError.

        ``num_nodes``: of the job, where it is not all of the cluster's.
        """
        nodes = self.cluster.spec.nodes
        self.cluster.shape(Links({LOGIN: "none", **dict.fromkeys(nodes, rate)}), nodes)
        output = self._logs / f"{run_name}.out"
        output.parent.mkdir(parents=True, exist_ok=True)
        words = [experiment, f"run.root={self.runs}", f"run.name={run_name}", *overrides]
        job_id = self._submit(output, words, num_nodes or self.cluster.spec.num_nodes)
        while True:
            state = self._state(job_id)
            text = output.read_text(errors="replace") if output.exists() else ""
            done, total = BLOCK.findall(text)[-1] if BLOCK.search(text) else (0, 0)
            show(Progress(rate, job_id, state, int(done), int(total)))
            if state not in WAITING:
                break
            time.sleep(POLL_S)
        if state != "COMPLETED":
            tail = "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
            raise JobError(f"job {job_id} ({rate}) ended as {state}; {output} ends with\n{tail}")
        return self.runs / experiment / run_name

    @property
    def _logs(self) -> Path:
        return self.root / "logs" / self.name

    def _submit(self, output: Path, words: Sequence[str], num_nodes: int) -> str:
        """What a user types on the login node; the id of the job."""
        sbatch = ["sbatch", "--parsable", "-N", str(num_nodes), f"--output={output}", "launch/slurm.sbatch"]
        return self._on_login([*sbatch, *words]).strip()

    def _state(self, job_id: str) -> str:
        return self._on_login(["squeue", "-h", "-j", job_id, "-t", "all", "-o", "%T"]).strip()

    def _on_login(self, command: Sequence[str]) -> str:
        environment = {**os.environ, "XPYD_PYTHON": sys.executable, "XPYD_LOG_DIR": str(self._logs)}
        entered = self.cluster.command(LOGIN, command, directory=str(self.root))
        result = subprocess.run(entered, env=environment, capture_output=True, text=True, timeout=60)
        if result.returncode:
            raise JobError(f"{' '.join(command)}: exit code {result.returncode}\n{result.stderr.strip()}")
        return result.stdout
