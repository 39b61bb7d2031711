"""What following a plan costs: every way that it weighed, on real ranks, paired; the best of them against its advice.

python -m experiments.regret regret.plan=runs/plan/RUN placement.allow_shared_node=true
python -m experiments.regret regret.plan=runs/plan/RUN launch=slurm run.name=june run.resume=true
"""

from __future__ import annotations

from xpyd.config.regret import Regret
from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.regret import run_regret  # ranks only: torch and MPI
    from xpyd.trial import finish

    config: Regret = job.config
    run_regret(config, job)
    finish(job)


if __name__ == "__main__":
    main("regret", run)
