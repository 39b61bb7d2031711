"""Which scheduler an instance gets: the configured policy where prompts are computed, decode-only elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from xpyd.kv.entries import Fetch
from xpyd.placement import Role
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.chunked import ChunkedScheduler, fill_chunked
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.decode_only import DecodeOnlyScheduler
from xpyd.scheduler.prefill_first import PrefillFirstScheduler, fill_prefill_first
from xpyd.scheduler.sequence import StepPlan
from xpyd.scheduler.static import StaticScheduler, fill_static

Fill = Callable[[Scheduler], StepPlan]

SCHEDULERS: dict[str, type[Scheduler]] = {
    "chunked": ChunkedScheduler,
    "prefill_first": PrefillFirstScheduler,
    "static": StaticScheduler,
}
# What fills the steps of those that the simulator can play over counted blocks; it plays others as they are.
FILLS: dict[str, Fill] = {
    "chunked": fill_chunked,
    "prefill_first": fill_prefill_first,
    "static": fill_static,
}


def build_scheduler(config: SchedulerConfig, role: Role, fetch: Fetch | None = None) -> Scheduler:
    """A fresh scheduler, with an empty pool, for an instance of ``role``; ``fetch`` as in ``Scheduler``."""
    return (DecodeOnlyScheduler if role is Role.DECODE else SCHEDULERS[config.policy])(config, fetch)
