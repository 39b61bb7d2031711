"""Interference: gaps of a colocated decode batch, alone and beside prefill chunks, over chunk and batch sizes.

    python -m experiments.interference 'sweep.chunk_tokens=[64,256]' model=tiny
"""

from __future__ import annotations

from xpyd.config import Interference
from xpyd.entry import Job, main
from xpyd.trial import finish, run_interference


def run(job: Job) -> None:
    config: Interference = job.config
    run_interference(config, job)
    finish(job)


if __name__ == "__main__":
    main("interference", run)
