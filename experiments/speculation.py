"""Speculative decoding in both arms, beside both arms without: what it takes and brings, and what is left of the win.

python -m experiments.speculation placement.allow_shared_node=true
mpirun -n 3 python -m experiments.speculation speculation=layers speculation.num_tokens=2
"""

from __future__ import annotations

from xpyd.config.compare import Speculation
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.trial import compare_blocks, finish, open_session, play_all  # ranks only: torch and MPI

    config: Speculation = job.config
    with open_session(job) as session:
        play_all(session, compare_blocks(config), job)
    finish(job)


if __name__ == "__main__":
    main("speculation", run)
