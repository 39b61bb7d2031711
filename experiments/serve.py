"""One arm: play a workload on the placement as it is.

python -m experiments.serve placement=2c workload=chat
mpirun -n 3 python -m experiments.serve placement=1p1d placement.allow_shared_node=true
"""

from __future__ import annotations

from xpyd.config.serve import Serve
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.trial import finish, open_session, play_all, serve_blocks  # ranks only: torch and MPI

    config: Serve = job.config
    with open_session(job) as session:
        play_all(session, serve_blocks(config), job)
    finish(job)


if __name__ == "__main__":
    main("serve", run)
