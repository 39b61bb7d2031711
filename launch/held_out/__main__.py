"""Predict cells of a break-even map, freeze each, measure it as a real Slurm job, and hold both together.

make held-out
python -m launch.held_out --cells 1p1d-{0.2,1}-256-24-3 2p1d-0.5-256-24-4
python -m launch.held_out --cells 1p1d-0.5-128-24-5 --calibrated runs/calibrate/OTHER-* --also runs/*/OTHER-*p*d-*-*-*-*

Brings a virtual cluster of its own up, and takes it down again however it ends. For each cell in turn: calibrates as
many workers as it has, where there is one in another ratio, on links of a rate that no cell has, freezes the cell's
prediction, and submits its comparison with the links at its own rate. A prediction rests on the last ``--pool``
calibrations, so the first of a placement has some made before it. With ``--repeats`` each cell is run so many times:
what one run says of the next is as near as any prediction can come on this machine. The run folders stay; a sweep may
be done in parts, which ``--calibrated`` and ``--also`` join.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from launch.held_out.cells import Cell, Plan, placement_of, tc_rate
from launch.slurm_demo import front
from launch.slurm_demo.jobs import Demo, JobError
from launch.slurm_demo.show import following, say
from launch.virtual_cluster.spec import ClusterError

MAP_TIMEOUT_S = 600
MIN_POOL = 3  # calibrations below which an interval says little: Student's t is 12.7 for two, 4.3 for three
DEFAULT_CELLS = ("1p1d-0.2-256-24-3", "1p1d-1-1024-24-6", "2p1d-0.5-256-24-4")  # do not, split, more workers


def main(arguments: Sequence[str]) -> int:
    """The exit code: 2 where no cluster can be started, 1 where a step failed, else that of ``analysis.held_out``."""
    options = parser().parse_args(arguments)
    return front.exit_code(lambda: run(options))


def parser() -> argparse.ArgumentParser:
    made = front.parser("held_out", __doc__)
    made.add_argument(
        "--cells", nargs="+", default=DEFAULT_CELLS, metavar="xPyD-GBPS-IN-OUT-RATE", help="default: %(default)s"
    )
    made.add_argument("--num-pairs", type=int, default=5, help="of blocks, in every cell (default: %(default)s)")
    made.add_argument(
        "--repeats", type=int, default=1, help="runs of every cell: how far do they differ? (default: %(default)s)"
    )
    made.add_argument(
        "--calibration-gbps", type=float, default=0.35, metavar="GBPS", help="the link that is calibrated on"
    )
    made.add_argument("--rounds", type=int, default=1, help="of every calibration (default: %(default)s)")
    made.add_argument(
        "--pool", type=int, default=5, help="calibrations that a prediction rests on (default: %(default)s)"
    )
    made.add_argument(
        "--calibrated",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="calibrations of earlier parts, oldest first",
    )
    made.add_argument("--also", type=Path, nargs="+", default=[], metavar="RUN", help="maps and runs of earlier parts")
    return made


def run(options: argparse.Namespace) -> int:
    """Measure, and hold the runs against the maps. Raises ClusterError, JobError."""
    paths = [*measure(options), *options.also]
    from analysis import held_out  # pandas: only once there is something to read

    say(f"again: python -m analysis.held_out {' '.join(map(str, paths))}")
    return held_out.main([str(path) for path in paths])


def measure(options: argparse.Namespace) -> list[Path]:
    """The run folders of the maps, then of the comparisons. Raises ClusterError, JobError."""
    calibrations: defaultdict[str, list[Path]] = defaultdict(list)  # by placement
    try:
        plan = Plan(tuple(map(Cell.parse, options.cells)), options.calibration_gbps)
        for path in options.calibrated:
            calibrations[placement_of(path)].append(path.absolute())
    except ValueError as error:
        raise ClusterError(str(error)) from None
    maps: list[Path] = []
    runs: list[Path] = []
    num_nodes = max(cell.num_nodes for cell in plan.cells)
    slow = tc_rate(plan.calibration_gbps)
    with front.own_cluster(options, "held-out", slow, num_nodes) as demo, following() as show:

        def calibrate(cell: Cell) -> Path:
            """One more of the cell's placement, fitted together with those before it."""
            known = calibrations[cell.calibrated_on]
            name = f"{demo.name}-{cell.calibrated_on}-{len(known)}"
            pool = known[max(0, len(known) - options.pool + 1) :] if options.pool > 1 else []
            overrides = plan.calibration_overrides(cell.calibrated_on, options.rounds, pool)
            known.append(demo.play("calibrate", slow, name, overrides, show, cell.num_nodes))
            return known[-1]

        for cell in plan.cells:
            while len(calibrations[cell.calibrated_on]) < min(options.pool, MIN_POOL) - 1:
                calibrate(cell)
            maps.append(predict(demo, cell, calibrate(cell), options.num_pairs))
            overrides = cell.run_overrides(options.num_pairs)
            for repeat in range(options.repeats):
                name = f"{demo.name}-{cell.name}" + (f"-{repeat + 1}" if repeat else "")
                runs.append(demo.play("compare", tc_rate(cell.link_gbps), name, overrides, show, cell.num_nodes))
    return [*maps, *runs]


def predict(demo: Demo, cell: Cell, calibrated: Path, num_pairs: int) -> Path:
    """The run folder of the cell's map, frozen. Raises JobError."""
    name = f"{demo.name}-{cell.name}"
    overrides = cell.map_overrides(calibrated / "calibration.yaml", num_pairs)
    command = [sys.executable, "-m", "experiments.break_even", f"run.root={demo.runs}", f"run.name={name}", *overrides]
    done = subprocess.run([*command, "run.report=false"], cwd=front.ROOT, timeout=MAP_TIMEOUT_S)
    if done.returncode:
        raise JobError(f"the map of {cell.name}: exit code {done.returncode}")
    return demo.runs / "break_even" / name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
