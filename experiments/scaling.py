"""Scaling inside an instance: prefill and decode steps on 1, 2 and 4 ranks that divide heads, layers or tokens.

python -m experiments.scaling model=small
mpirun -n 5 python -m experiments.scaling 'sweep.widths=[1,2,4]'
"""

from __future__ import annotations

from xpyd.config.engine import Scaling
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.probes import run_scaling  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: Scaling = job.config
    run_scaling(config, job)
    finish(job)


if __name__ == "__main__":
    main("scaling", run)
