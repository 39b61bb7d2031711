"""Tune: search UCX options between a prefill and a decode rank, and write what wins as a fabric preset.

python -m experiments.tune placement.allow_shared_node=true search.num_repeats=9
sbatch -N 2 launch/slurm.sbatch tune fabric=tcp
"""

from __future__ import annotations

from xpyd.config.wire import Tune
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.trial import finish  # ranks only: torch and MPI
    from xpyd.tuning import run_tune

    config: Tune = job.config
    run_tune(config, job)
    finish(job)


if __name__ == "__main__":
    main("tune", run)
