"""Predict a break-even map of a virtual cluster, freeze it, measure its cells as real Slurm jobs, hold both together.

make held-out
python -m launch.held_out --links 1 2.5 10 --input-lens 48 96 --output-lens 6
python -m launch.held_out --map runs/break_even/RUN --links 2.5

Brings a cluster of its own up, calibrates on unshaped links, freezes the map, submits a comparison per cell with the
links at its rate, and takes the cluster down again however it ends. The run folders stay. With ``--map`` it measures
cells of a map that is frozen already, on a cluster as before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.held_out.cells import PRESET, Grid, cell_name, cell_overrides, tc_rate
from launch.slurm_demo import front
from launch.slurm_demo.jobs import Demo, JobError
from launch.slurm_demo.show import following, say
from launch.virtual_cluster.links import UNSHAPED

MAP_TIMEOUT_S = 600


def main(arguments: Sequence[str]) -> int:
    """The exit code: 2 where no cluster can be started, 1 where a step failed, else that of ``analysis.held_out``."""
    options = parser().parse_args(arguments)
    return front.exit_code(lambda: run(options))


def parser() -> argparse.ArgumentParser:
    made = front.parser("held_out", __doc__)
    made.add_argument("--map", type=Path, metavar="RUN", help="a frozen map to measure (default: make one first)")
    made.add_argument("--links", type=float, nargs="+", default=[1, 2.5, 10], metavar="GBPS", help="rates of the links")
    made.add_argument("--input-lens", type=int, nargs="+", default=[48, 96], metavar="TOKENS")
    made.add_argument("--output-lens", type=int, nargs="+", default=[6], metavar="TOKENS")
    made.add_argument("--rates-rps", type=float, nargs="+", default=[200], metavar="RPS", help="of arrivals")
    made.add_argument("--num-pairs", type=int, default=5, help="of blocks, in every cell (default: %(default)s)")
    return made


def run(options: argparse.Namespace) -> int:
    """Measure, and hold the runs against the map. Raises ClusterError, JobError."""
    path, runs = measure(options)
    from analysis import held_out  # pandas: only once there is something to read

    say(f"again: python -m analysis.held_out {path} {' '.join(map(str, runs))}")
    return held_out.main([str(path), *map(str, runs)])


def measure(options: argparse.Namespace) -> tuple[Path, list[Path]]:
    """The map's run folder, and that of every cell. Raises ClusterError, JobError."""
    grid = Grid(
        links_gbps=tuple(options.links),
        input_lens=tuple(options.input_lens),
        output_lens=tuple(options.output_lens),
        rates_rps=tuple(options.rates_rps),
        num_pairs=options.num_pairs,
    )
    with front.own_cluster(options, "held-out", UNSHAPED) as demo, following() as show:
        path = options.map
        if path is None:
            calibrated = demo.play("calibrate", UNSHAPED, demo.name, [PRESET, "run.report=false"], show)
            path = predict(demo, grid.map_overrides(calibrated / "calibration.yaml"))
        runs = [
            demo.play(
                "compare",
                tc_rate(cell[0]),
                f"{demo.name}-{cell_name(cell)}",
                cell_overrides(cell, grid.num_pairs),
                show,
            )
            for cell in grid.cells
        ]
    return path, runs


def predict(demo: Demo, overrides: Sequence[str]) -> Path:
    """The run folder of the map, frozen. Raises JobError."""
    places = [f"run.root={demo.runs}", f"run.name={demo.name}"]
    command = [sys.executable, "-m", "experiments.break_even", *places, *overrides]
    done = subprocess.run(command, cwd=front.ROOT, timeout=MAP_TIMEOUT_S)
    if done.returncode:
        raise JobError(f"the map: exit code {done.returncode}")
    return demo.runs / "break_even" / demo.name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
