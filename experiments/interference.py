"""Interference: gaps of a colocated decode batch, alone and beside prefill chunks, over chunk and batch sizes.

python -m experiments.interference 'sweep.chunk_tokens=[64,256]' model=tiny
"""

from __future__ import annotations

from xpyd.config.engine import Interference
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.probes import run_interference  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: Interference = job.config
    run_interference(config, job)
    finish(job)


if __name__ == "__main__":
    main("interference", run)
