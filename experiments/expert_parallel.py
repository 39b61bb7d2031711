"""Expert parallelism on 1, 2 and 4 ranks: dispatch and combine, plain, overlapped, and with experts near their tokens.

python -m experiments.expert_parallel
mpirun -n 5 python -m experiments.expert_parallel model=tiny_moe sweep.emulated_nodes=null
"""

from __future__ import annotations

from xpyd.config.engine import ExpertParallel
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.probes import run_expert_parallel  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: ExpertParallel = job.config
    run_expert_parallel(config, job)
    finish(job)


if __name__ == "__main__":
    main("expert_parallel", run)
