"""Static batching, from before continuous batching: what waits becomes a batch, and nobody joins until all have ended.

What continuous batching is held against (``experiments.claims``). A seat whose sequence has ended stays empty, but
costs no padding here: a step runs only those that still decode, so that static batching loses nothing but the seats.
"""

from __future__ import annotations

from xpyd.scheduler.prefill_first import PrefillFirstScheduler
from xpyd.scheduler.sequence import Chunk, StepPlan


class StaticScheduler(PrefillFirstScheduler):
    def schedule(self) -> StepPlan:
        if not self.num_running:
            while self._next_admitted() is not None:
                pass
        return super().schedule()

    def _plan_prompts(self) -> list[Chunk]:
        """Whole prompts of the batch up to the token budget; the first one even where it is longer."""
        prefills: list[Chunk] = []
        budget = self.config.max_num_batched_tokens
        for sequence in self._running:
            if sequence.decoding:
                continue
            if prefills and sequence.num_to_compute > budget:
                break
            prefills.append(Chunk(sequence, sequence.num_computed, sequence.num_to_compute))
            budget -= sequence.num_to_compute
        return prefills
