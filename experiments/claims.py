"""The field's headline claims as runnable tests on this cluster: what holds here, what does not, what stays open.

python -m experiments.claims placement.allow_shared_node=true
python -m experiments.claims claims=quick 'claims.only=[prefill_burst,ttft]' fabric=ib placement=2p2d launch=slurm
"""

from __future__ import annotations

import sys

from xpyd.claims import run_claims
from xpyd.compose import compose, user_error
from xpyd.config.base import Experiment
from xpyd.config.claims import Claims
from xpyd.launcher import inside_mpi


def run(config: Experiment, overrides: list[str]) -> int:
    assert isinstance(config, Claims)
    return run_claims(config, overrides)


if __name__ == "__main__":
    if inside_mpi():
        sys.exit(user_error("claims starts the ranks of each experiment itself; drop mpirun or srun (see launch=...)"))
    sys.exit(compose("claims", sys.argv[1:], run))
