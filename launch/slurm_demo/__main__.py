"""A comparison on a slow and on a fast link: two real Slurm jobs on a virtual cluster, and both verdicts in one table.

make slurm-demo
python -m launch.slurm_demo --slow 500mbit --fast none num_pairs=8

Brings a cluster of its own up, submits ``launch/slurm.sbatch compare +preset=slurm_demo`` once per link, and takes the
cluster down again however it ends, even by kill -9. The run folders, each with its report.html, stay.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.slurm_demo import front
from launch.slurm_demo.show import following
from launch.virtual_cluster.links import parse_rate


def main(arguments: Sequence[str]) -> int:
    """The exit code: 2 where no cluster can be started, 1 where a job failed, 0 with both verdicts on the table."""
    options = parser().parse_args(arguments)
    return front.exit_code(lambda: run(options))


def parser() -> argparse.ArgumentParser:
    made = front.parser("slurm_demo", __doc__)
    made.add_argument("--slow", default="1gbit", metavar="RATE", help="of the slow link (default: %(default)s)")
    made.add_argument("--fast", default="10gbit", metavar="RATE", help="of the fast one; none: unshaped (%(default)s)")
    made.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the comparison, such as num_pairs=8")
    return made


def run(options: argparse.Namespace) -> int:
    """Up, a job per link, down, the table. Raises ClusterError, JobError."""
    rates = (options.slow, options.fast)
    for rate in rates:
        parse_rate(rate)
    with front.own_cluster(options, "slurm-demo", options.slow) as demo, following() as show:
        folders = [demo.measure(rate, options.overrides, show) for rate in rates]
    from launch.slurm_demo.table import print_verdicts  # pandas: only once there is something to read

    print_verdicts(dict(zip(rates, folders, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
