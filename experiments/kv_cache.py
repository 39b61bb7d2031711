"""What a KV cache saves: prefill seconds, TTFT and bytes, for each eviction policy and tier, beside no cache.

python -m experiments.kv_cache placement.allow_shared_node=true
mpirun -n 3 python -m experiments.kv_cache 'sweep.policies=[lru]' workload.num_requests=96 scheduler.num_kv_blocks=512
"""

from __future__ import annotations

from xpyd.entry import Job, main


def run(job: Job) -> None:
    from xpyd.kv_caches import run_kv_caches  # ranks only: torch and MPI
    from xpyd.trial import finish

    run_kv_caches(job)
    finish(job)


if __name__ == "__main__":
    main("kv_cache", run)
