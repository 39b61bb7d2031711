"""Tune the rival: the chunk size and batch limit with which the colocated arm does best on your workload, as a preset.

python -m experiments.tune_colocated placement.allow_shared_node=true workload=documents
mpirun -n 5 python -m experiments.tune_colocated placement=2p2d 'search.max_num_batched_tokens=[128,512]'
"""

from __future__ import annotations

from xpyd.config.serve import TuneColocated
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.colocated_tuning import run_tune_colocated  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: TuneColocated = job.config
    run_tune_colocated(config, job)
    finish(job)


if __name__ == "__main__":
    main("tune_colocated", run)
