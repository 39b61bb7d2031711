"""The bill alone: KV patterns between prefill and decode ranks without a model; fits alpha, gamma and bandwidth.

python -m experiments.transfer placement.allow_shared_node=true transport=ucx
mpirun -n 3 python -m experiments.transfer transport=mpi
"""

from __future__ import annotations

from xpyd.config.wire import Transfer
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.probes import run_transfer  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: Transfer = job.config
    run_transfer(config, job)
    finish(job)


if __name__ == "__main__":
    main("transfer", run)
