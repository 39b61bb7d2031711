"""The hand-off's modes: exposed transfer as a share of prefill, whole, by layers and by chunks, pull and push.

python -m experiments.handoff placement.allow_shared_node=true
mpirun -n 3 python -m experiments.handoff transfer.staging=auto 'sweep.directions=[pull]'
"""

from __future__ import annotations

from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.handoffs import run_handoffs  # ranks only: torch and MPI
    from xpyd.trial import finish

    run_handoffs(job)
    finish(job)


if __name__ == "__main__":
    main("handoff", run)
