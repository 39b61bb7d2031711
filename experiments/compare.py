"""Both arms, paired: xPyD against as many colocated workers, on the same requests, in one run.

python -m experiments.compare placement=1p1d placement.allow_shared_node=true
mpirun -n 5 python -m experiments.compare placement=2p2d
"""

from __future__ import annotations

from xpyd.config.compare import Compare
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.trial import (  # ranks only: torch and MPI
        compare_blocks,
        finish,
        open_session,
        plan_hybrid,
        play_all,
        write_prediction,
    )

    config: Compare = job.config
    with open_session(job) as session:
        write_prediction(session, config, job)
        plan_hybrid(session, config, job)
        play_all(session, compare_blocks(config), job)
    finish(job)


if __name__ == "__main__":
    main("compare", run)
