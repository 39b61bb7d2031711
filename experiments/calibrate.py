"""Calibrate: step times and link of your ranks, fitted with intervals into RUN/calibration.yaml, for simulate.

python -m experiments.calibrate placement.allow_shared_node=true
mpirun -n 3 python -m experiments.calibrate model=small num_rounds=5
"""

from __future__ import annotations

from xpyd.config.serve import Calibrate
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.calibration import run_calibration  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: Calibrate = job.config
    run_calibration(config, job)
    finish(job)


if __name__ == "__main__":
    main("calibrate", run)
