"""Simulate: a compare or serve run in simulated time, from a calibration file or from model and machine. No ranks.

python -m experiments.simulate model=llama3_8b placement=2p2d fabric.rate_gbps=100
python -m experiments.simulate simulate.calibration=runs/calibrate/RUN/calibration.yaml model=tiny
"""

from __future__ import annotations

from xpyd import compiled
from xpyd.config.modeled import Simulate
from xpyd.entry import Job, main


def run(job: Job) -> None:
    compiled.use()
    from xpyd.simulation import run_simulation

    config: Simulate = job.config
    run_simulation(config, job)


if __name__ == "__main__":
    main("simulate", run)
