"""Prefill first: waiting prompts run whole and before any decode; decodes run in steps without prefill (vLLM v0).

Best time to first token, worst gaps: every admitted prompt stalls all decodes for its full length.
"""

from __future__ import annotations

from typing import ClassVar

from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Chunk, StepPlan


def fill_prefill_first(scheduler: Scheduler) -> StepPlan:
    """One step of ``scheduler``."""
    return prompts_or_decodes(scheduler, _prompts(scheduler))


def prompts_or_decodes(scheduler: Scheduler, prompts: list[Chunk]) -> StepPlan:
    """A step of ``prompts``; of the decodes where there are none."""
    if prompts:
        return StepPlan(prompts, [], [])
    decodes, preempted = scheduler._plan_decodes()
    return StepPlan([], decodes, preempted)


class PrefillFirstScheduler(Scheduler):
    plans_again: ClassVar[bool] = True

    def schedule(self) -> StepPlan:
        return fill_prefill_first(self)


def _prompts(scheduler: Scheduler) -> list[Chunk]:
    """Whole prompts up to the token budget; the first one even where it is longer."""
    prefills: list[Chunk] = []
    budget = scheduler.config.max_num_batched_tokens
    waiting = scheduler._waiting
    while waiting and (not prefills or scheduler._num_uncached(waiting[0]) <= budget):
        sequence = scheduler._next_admitted()
        if sequence is None:
            break
        prefills.append(Chunk(sequence, sequence.num_computed, sequence.num_to_compute))
        budget -= sequence.num_to_compute
    return prefills
