"""Prefill first: waiting prompts run whole and before any decode; decodes run in steps without prefill (vLLM v0).

Best time to first token, worst gaps: every admitted prompt stalls all decodes for its full length.
"""

from __future__ import annotations

from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.sequence import Chunk, StepPlan


class PrefillFirstScheduler(Scheduler):
    def schedule(self) -> StepPlan:
        prefills = self._plan_prompts()
        if prefills:
            return StepPlan(prefills, [], [])
        decodes, preempted = self._plan_decodes()
        return StepPlan([], decodes, preempted)

    def _plan_prompts(self) -> list[Chunk]:
        """Whole prompts up to the token budget; the first one even where it is longer."""
        prefills: list[Chunk] = []
        budget = self.config.max_num_batched_tokens
        while self._waiting and (not prefills or self._num_uncached(self._waiting[0]) <= budget):
            sequence = self._next_admitted()
            if sequence is None:
                break
            prefills.append(Chunk(sequence, sequence.num_computed, sequence.num_to_compute))
            budget -= sequence.num_to_compute
        return prefills
