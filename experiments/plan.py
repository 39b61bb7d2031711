"""Split or not, in which xPyD ratio, how wide, at what cost: every way to use your ranks, in simulated time. No ranks.

python -m experiments.plan model=llama3_8b plan.num_ranks=8 fabric.rate_gbps=100
python -m experiments.plan simulate.calibration=runs/calibrate/RUN/calibration.yaml plan.num_ranks=4 workload=documents
"""

from __future__ import annotations

from xpyd import compiled
from xpyd.config.modeled import Plan
from xpyd.entry import Job, main


def run(job: Job) -> None:
    compiled.use()
    from xpyd.planning import run_plan

    config: Plan = job.config
    run_plan(config, job)


if __name__ == "__main__":
    main("plan", run)
