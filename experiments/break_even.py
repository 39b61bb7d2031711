"""Where splitting pays: a map over link, prompt length, rate and output length, in simulated time. No ranks.

python -m experiments.break_even 'break_even.links_gbps=[10,100]' 'break_even.input_lens=[512,2048]' model=llama3_8b
python -m experiments.break_even simulate.calibration=runs/calibrate/RUN/calibration.yaml model=tiny
"""

from __future__ import annotations

from xpyd import compiled
from xpyd.config.modeled import BreakEven
from xpyd.entry import Job, main


def run(job: Job) -> None:
    compiled.use()
    from xpyd.break_even import run_break_even

    config: BreakEven = job.config
    run_break_even(config, job)


if __name__ == "__main__":
    main("break_even", run)
