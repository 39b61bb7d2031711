"""Contention: the bill isolated and under load, and what receiving a KV cache costs the decode batch beside it.

python -m experiments.contention placement.allow_shared_node=true 'sweep.num_decode_seqs=[1,8]' fabric=tcp
"""

from __future__ import annotations

from xpyd.config.wire import Contention
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.probes import run_contention  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: Contention = job.config
    run_contention(config, job)
    finish(job)


if __name__ == "__main__":
    main("contention", run)
