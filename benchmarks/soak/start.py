"""Starts a job of the soak, on this machine or with each rank on a node of a virtual cluster, and deals its faults.

A rank kills or stops itself. What it cannot do is done here: cutting its link, and, once it was declared lost, waking
every second one that was stopped and mending every link. Those come back, and must do no harm.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.soak.trial import Order, fault_file, lost_file, over_file, ready_file
from launch.virtual_cluster.cluster import Cluster
from launch.virtual_cluster.spec import LOGIN
from launch.virtual_cluster.temporary import temporary_cluster
from xpyd.launcher import own_session, rank_environment
from xpyd.streams import FOLDER

ROOT = Path(__file__).parents[2]
FORWARDED = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS")  # a node's ranks start with an empty environment
POLL_S = 0.005
LIMIT_S = 120.0  # of one job
TIMED_OUT = 124


def run_job(order: Order, folder: Path) -> int:
    """Play one job in a new ``folder``; returns its exit code. Raises ClusterError where namespaces fail."""
    (folder / FOLDER).mkdir(parents=True)
    if order.fault == "cut":
        with temporary_cluster(order.num_ranks) as cluster:
            cutter = Cutter(cluster, order, folder)
            return _run(_in_cluster(cluster, order, folder), folder, cutter.tend)
    return _run([*_mpirun(order), *_program(order, folder)], folder, Waker(order, folder).tend)


class Cutter:
    """Takes down the links of victims that are ready for it, and mends them when they were declared lost."""

    def __init__(self, cluster: Cluster, order: Order, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._whole = {rank for block in order.victims for rank in block}
        self._cut: set[int] = set()

    def tend(self) -> None:
        for rank in [rank for rank in self._whole if ready_file(self._folder, rank).exists()]:
            self._cluster.set_link(node_of(rank), up=False)
            fault_file(self._folder, rank).write_text(f"{time.perf_counter_ns()} 0")
            self._whole.remove(rank)
            self._cut.add(rank)
        for rank in [rank for rank in self._cut if lost_file(self._folder, rank).exists()]:
            self._cluster.set_link(node_of(rank), up=True)
            self._cut.remove(rank)


class Waker:
    """Continues stopped ranks of even number once they are declared lost; the odd ones are killed at the job's end.

    Nobody could end these otherwise: mpirun waits for them (the front end of an experiment ends its mpirun instead).
    """

    def __init__(self, order: Order, folder: Path) -> None:
        self._folder = folder
        self._asleep = {rank for block in order.victims for rank in block} if order.fault == "stop" else set()

    def tend(self) -> None:
        over = over_file(self._folder).exists()
        for rank in [rank for rank in self._asleep if lost_file(self._folder, rank).exists()]:
            if rank % 2 == 0 or over:
                self._asleep.remove(rank)
                process = int(fault_file(self._folder, rank).read_text().split()[1])
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL if rank % 2 else signal.SIGCONT)


def node_of(rank: int) -> str:
    return f"n{rank + 1}"


def _run(command: list[str], folder: Path, tend: Callable[[], None]) -> int:
    environment = {**rank_environment(ROOT), "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    with own_session(environment) as own, (folder / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=ROOT, env=own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        deadline = time.monotonic() + LIMIT_S
        try:
            while job.poll() is None and time.monotonic() < deadline:
                tend()
                time.sleep(POLL_S)
            return TIMED_OUT if job.returncode is None else job.returncode
        finally:
            end_session(job.pid)
            job.wait()


def end_session(leader: int) -> None:
    """Kill what is left of a job: stopped ranks outlive their mpirun."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
                if session == leader:
                    os.kill(int(entry.name), signal.SIGKILL)


def _mpirun(order: Order) -> list[str]:
    mpirun = Path(sys.prefix) / "bin" / "mpirun"
    options = ["-n", str(order.num_ranks), "--oversubscribe", "--bind-to", "none", "--mca", "pml", "ob1"]
    if order.policy != "end":
        options += ["--with-ft", "ulfm"]
    if os.geteuid() == 0:
        options.append("--allow-run-as-root")
    return [str(mpirun) if mpirun.exists() else "mpirun", *options]


def _in_cluster(cluster: Cluster, order: Order, folder: Path) -> list[str]:
    hosts = ",".join(f"{node_of(rank)}:1" for rank in range(order.num_ranks))
    options = ["--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "eth0", "--host", hosts]
    for name, value in {
        "plm": "ssh",
        "plm_ssh_agent": str(ROOT / "launch/agent"),
        "plm_ssh_no_tree_spawn": "1",
    }.items():
        options += ["--prtemca", name, value]
    for name in FORWARDED:
        if name in os.environ or name == "PYTHONPATH":
            options += ["-x", name]
    command = [*_mpirun(order), *options, *_program(order, folder)]
    return cluster.command(LOGIN, command, directory=str(ROOT))


def _program(order: Order, folder: Path) -> list[str]:
    module = ["-m", "mpi4py", "-m", "benchmarks.soak.ranks"]
    return [sys.executable, *module, str(folder.absolute()), order.to_json()]
