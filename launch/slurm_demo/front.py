"""The front of a program that brings a cluster of its own up for jobs: options, signals, exit codes, up and down."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType

from launch.slurm_demo.jobs import Demo, JobError
from launch.slurm_demo.show import say
from launch.virtual_cluster.spec import ClusterError, ClusterSpec
from launch.virtual_cluster.temporary import cluster_of, cluster_refusal

ROOT = Path(__file__).parents[2]
NUM_NODES = 2  # 1P1D: the client and the prefill worker on n1, the decode worker on n2
USER_ERROR = 2


def exit_code(play: Callable[[], int]) -> int:
    """What ``play`` returns; 2 where no cluster can be started, 1 where a job failed. A signal unwinds it first."""
    signal.signal(signal.SIGTERM, _unwind)
    signal.signal(signal.SIGHUP, _unwind)
    try:
        return play()
    except (ClusterError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR if isinstance(error, ClusterError) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every such program has."""
    made = argparse.ArgumentParser(
        prog=f"python -m launch.{program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders go (default: runs)")
    made.add_argument(
        "--dir",
        type=Path,
        default=Path(f"/tmp/xpyd-{program.replace('_', '-')}-{os.geteuid()}"),
        help="the cluster's folder while it is up (default: %(default)s)",
    )
    return made


@contextmanager
def own_cluster(options: argparse.Namespace, name: str, rate: str, num_nodes: int = NUM_NODES) -> Iterator[Demo]:
    """Jobs on a cluster with links at ``rate``, gone afterwards; ``name`` begins those of runs. Raises ClusterError."""
    if reason := cluster_refusal():
        raise ClusterError(reason)
    spec = ClusterSpec(options.dir.absolute(), num_nodes, rate=rate)
    try:
        with cluster_of(spec) as cluster:
            say(f"cluster up: nodes {', '.join(spec.hosts)}; folder {spec.folder}, gone at the end")
            yield Demo(cluster, ROOT, options.runs.absolute(), f"{name}-{datetime.now():%Y%m%d-%H%M%S}")
    finally:
        say("cluster down")


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
