"""A job whose rank 1 raises while the others wait: the whole world must end, with the traceback."""

from __future__ import annotations

from xpyd.entry import Job, main


def run(job: Job) -> None:
    if job.rank == 1:
        print(1 // 0)
    job.comm.Barrier()


if __name__ == "__main__":
    main("compare", run)
