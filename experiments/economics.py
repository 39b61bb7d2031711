"""Closed form, no ranks: the transfer bill and the interference win over prompt length and link rate.

python -m experiments.economics model=llama3_70b 'economics.rates_gbps=[25,100,400]'
"""

from __future__ import annotations

from xpyd.compose import ROOT
from xpyd.config.modeled import Economics
from xpyd.economics.sweep import sweep
from xpyd.entry import Job, main
from xpyd.environment import lone_environment
from xpyd.model.checkpoint_config import resolve_spec
from xpyd.run_dir import RowWriter


def run(job: Job) -> None:
    config: Economics = job.config
    job.run_dir.write_json("environment.json", {**lone_environment(ROOT, []), "labels": []})  # no machine is in it
    with RowWriter(job.run_dir, rank=0) as rows:
        for row in sweep(resolve_spec(config.model), config.economics):
            rows.write(row)


if __name__ == "__main__":
    main("economics", run)
