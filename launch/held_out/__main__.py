"""Predict cells of a break-even map, freeze each, measure it as a real Slurm job, and hold both together.

make held-out
python -m launch.held_out --placements 1p1d --links 0.2 1 --input-lens 256 512 --rates-rps 2 3
python -m launch.held_out --links 0.5 --also runs/break_even/OTHER-* runs/compare/OTHER-*

Brings a virtual cluster of its own up, and takes it down again however it ends. For each cell in turn: calibrates on
links of a rate that no cell has, freezes the cell's prediction, and submits its comparison with the links at its own
rate. A prediction rests on the last ``--pool`` calibrations, and a last one follows the last cell, so that what the
machine did meanwhile is known. The run folders stay; a sweep may be done in parts, whose results ``--also`` joins.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.held_out.cells import Cell, Grid, tc_rate
from launch.slurm_demo import front
from launch.slurm_demo.jobs import Demo, JobError
from launch.slurm_demo.show import following, say
from launch.virtual_cluster.spec import ClusterError

MAP_TIMEOUT_S = 600


def main(arguments: Sequence[str]) -> int:
    """The exit code: 2 where no cluster can be started, 1 where a step failed, else that of ``analysis.held_out``."""
    options = parser().parse_args(arguments)
    return front.exit_code(lambda: run(options))


def parser() -> argparse.ArgumentParser:
    made = front.parser("held_out", __doc__)
    made.add_argument("--placements", nargs="+", default=["1p1d", "2p1d"], metavar="xPyD")
    made.add_argument("--links", type=float, nargs="+", default=[0.2, 1], metavar="GBPS", help="rates of the links")
    made.add_argument("--input-lens", type=int, nargs="+", default=[256], metavar="TOKENS")
    made.add_argument("--output-lens", type=int, nargs="+", default=[24], metavar="TOKENS")
    made.add_argument("--rates-rps", type=float, nargs="+", default=[3], metavar="RPS", help="of arrivals")
    made.add_argument("--num-pairs", type=int, default=5, help="of blocks, in every cell (default: %(default)s)")
    made.add_argument(
        "--calibration-gbps", type=float, default=0.35, metavar="GBPS", help="the link that is calibrated on"
    )
    made.add_argument("--rounds", type=int, default=1, help="of every calibration (default: %(default)s)")
    made.add_argument(
        "--pool", type=int, default=3, help="calibrations that a prediction rests on (default: %(default)s)"
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
    try:
        grid = Grid(
            placements=tuple(options.placements),
            links_gbps=tuple(options.links),
            input_lens=tuple(options.input_lens),
            output_lens=tuple(options.output_lens),
            rates_rps=tuple(options.rates_rps),
            calibration_gbps=options.calibration_gbps,
        )
    except ValueError as error:
        raise ClusterError(str(error)) from None
    maps: list[Path] = []
    runs: list[Path] = []
    calibrations: list[Path] = []
    num_nodes = max(cell.num_nodes for cell in grid.cells)
    slow = tc_rate(options.calibration_gbps)
    with front.own_cluster(options, "held-out", slow, num_nodes) as demo, following() as show:

        def calibrate() -> Path:
            name = f"{demo.name}-{len(calibrations)}"
            pool = calibrations[max(0, len(calibrations) - options.pool + 1) :] if options.pool > 1 else []
            overrides = grid.calibration_overrides(options.rounds, pool)
            calibrations.append(demo.play("calibrate", slow, name, overrides, show, front.NUM_NODES))
            return calibrations[-1]

        for cell in grid.cells:
            maps.append(predict(demo, cell, calibrate(), options.num_pairs))
            overrides = cell.run_overrides(options.num_pairs)
            name = f"{demo.name}-{cell.name}"
            runs.append(demo.play("compare", tc_rate(cell.link_gbps), name, overrides, show, cell.num_nodes))
        calibrate()
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
