"""Goodput against rate: every arm at rising rates of arrivals, and the rate at which each loses its service level.

python -m experiments.saturation placement=1p1d placement.allow_shared_node=true slo=loose
mpirun -n 5 python -m experiments.saturation placement=2p2d search.precision=0.05
"""

from __future__ import annotations

from xpyd.config.compare import Saturation
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.saturation import run_saturation  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: Saturation = job.config
    run_saturation(config, job)
    finish(job)


if __name__ == "__main__":
    main("saturation", run)
