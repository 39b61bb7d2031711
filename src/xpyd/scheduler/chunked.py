"""Chunked prefill: every decode first, then prompt chunks in what is left of the token budget.

Sarathi-Serve's stall-free batching, and vLLM v1's default: a decode never waits for more than one step of at most
``max_num_batched_tokens`` tokens, however long the prompt beside it.
"""

from __future__ import annotations

from typing import ClassVar

from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Chunk, Sequence, StepPlan


def fill_chunked(scheduler: Scheduler) -> StepPlan:
    """One step of ``scheduler``."""
    decodes, preempted = scheduler._plan_decodes()
    budget = scheduler.config.max_num_batched_tokens - len(decodes)
    unfinished = iter([sequence for sequence in scheduler._running if not sequence.decoding])
    prefills: list[Chunk] = []
    while budget > 0:
        sequence: Sequence | None = next(unfinished, None) or scheduler._next_admitted()
        if sequence is None:
            break
        num_tokens = min(budget, sequence.num_to_compute)
        prefills.append(Chunk(sequence, sequence.num_computed, num_tokens))
        budget -= num_tokens
    return StepPlan(prefills, decodes, preempted)


class ChunkedScheduler(Scheduler):
    plans_again: ClassVar[bool] = True

    def schedule(self) -> StepPlan:
        return fill_chunked(self)
