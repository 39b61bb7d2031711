"""Static batching, from before continuous batching: what waits becomes a batch, and nobody joins until all have ended.

What continuous batching is held against (``experiments.claims``). A seat whose sequence has ended stays empty, but
costs no padding here: a step runs only those that still decode, so that static batching loses nothing but the seats.
"""

from __future__ import annotations

from typing import ClassVar

from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.prefill_first import prompts_or_decodes
from xpyd.scheduler.sequence import Chunk, StepPlan


def fill_static(scheduler: Scheduler) -> StepPlan:
    """One step of ``scheduler``: prompts of its batch, or else the decodes."""
    if not scheduler.num_running:
        while scheduler._next_admitted() is not None:
            pass
    return prompts_or_decodes(scheduler, _prompts(scheduler))


class StaticScheduler(Scheduler):
    plans_again: ClassVar[bool] = True

    def schedule(self) -> StepPlan:
        return fill_static(self)


def _prompts(scheduler: Scheduler) -> list[Chunk]:
    """Whole prompts of the batch up to the token budget; the first one even where it is longer."""
    prefills: list[Chunk] = []
    budget = scheduler.config.max_num_batched_tokens
    for sequence in scheduler._running:
        if sequence.decoding:
            continue
        if prefills and sequence.num_to_compute > budget:
            break
        prefills.append(Chunk(sequence, sequence.num_computed, sequence.num_to_compute))
        budget -= sequence.num_to_compute
    return prefills
