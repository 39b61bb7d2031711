"""A comparison on a slow and on a fast link: two real Slurm jobs on a virtual cluster, and both verdicts in one table.

make slurm-demo
python -m launch.slurm_demo --slow 500mbit --fast none num_pairs=8

Brings a cluster of its own up, submits ``launch/slurm.sbatch compare +preset=slurm_demo`` once per link, and takes the
cluster down again however it ends, even by kill -9. The run folders, each with its report.html, stay.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType

from launch.slurm_demo.jobs import Demo, JobError
from launch.slurm_demo.show import following, say
from launch.virtual_cluster import namespaces
from launch.virtual_cluster.life import Front
from launch.virtual_cluster.links import parse_rate
from launch.virtual_cluster.spec import ClusterError, ClusterSpec

ROOT = Path(__file__).parents[2]
NUM_NODES = 2  # 1P1D: the client and the prefill worker on n1, the decode worker on n2
USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """The exit code: 2 where no cluster can be started, 1 where a job failed, 0 with both verdicts on the table."""
    options = parser().parse_args(arguments)
    namespaces.extend_path()
    signal.signal(signal.SIGTERM, _unwind)
    signal.signal(signal.SIGHUP, _unwind)
    try:
        for rate in (options.slow, options.fast):
            parse_rate(rate)
        if reason := namespaces.refusal():
            raise ClusterError(reason)
        return run(options)
    except (ClusterError, JobError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR if isinstance(error, ClusterError) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m launch.slurm_demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--slow", default="1gbit", metavar="RATE", help="of the slow link (default: %(default)s)")
    made.add_argument("--fast", default="10gbit", metavar="RATE", help="of the fast one; none: unshaped (%(default)s)")
    made.add_argument("--runs", type=Path, default=ROOT / "runs", help="where run folders go (default: runs)")
    made.add_argument(
        "--dir",
        type=Path,
        default=Path(f"/tmp/xpyd-slurm-demo-{os.geteuid()}"),
        help="the cluster's folder while it is up (default: %(default)s)",
    )
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the comparison, such as num_pairs=8")
    return made


def run(options: argparse.Namespace) -> int:
    """Up, a job per link, the table, down."""
    spec = ClusterSpec(options.dir.absolute(), NUM_NODES, rate=options.slow)
    front = Front(spec)
    try:
        cluster = front.cluster()
        cluster.bring_up()
        say(f"cluster up: nodes {', '.join(spec.hosts)}; folder {spec.folder}, gone at the end")
        demo = Demo(cluster, ROOT, options.runs.absolute(), f"slurm-demo-{datetime.now():%Y%m%d-%H%M%S}")
        with following() as show:
            folders = [demo.measure(rate, options.overrides, show) for rate in (options.slow, options.fast)]
    finally:
        front.end()
        say("cluster down")
    from launch.slurm_demo.table import print_verdicts  # pandas: only once there is something to read

    print_verdicts(dict(zip((options.slow, options.fast), folders, strict=True)))
    return 0


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
