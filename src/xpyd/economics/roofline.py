"""Step times where nothing can be measured yet: a roofline over the model's FLOPs and bytes.

``step = max(flops / (peak * efficiency), bytes / (bandwidth * efficiency))`` (Williams, Waterman and Patterson, CACM
2009). A prompt chunk beside decodes is free as long as reading the weights takes longer than all the arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

from xpyd.model.spec import ModelSpec


@dataclass(frozen=True)
class Roofline:
    """One instance's arithmetic and memory, as far as a real kernel gets (peak times efficiency)."""

    flops_per_s: float
    memory_bytes_per_s: float

    def step_s(
        self,
        spec: ModelSpec,
        num_prefill_tokens: int = 0,
        num_cached_tokens: int = 0,
        num_decode_seqs: int = 0,
        context_len: int = 0,
    ) -> float:
        """Seconds of one step: a prompt chunk behind ``num_cached_tokens``, decodes of ``context_len``, or both.

        Bytes are the weights, read once (of experts, those that the step is likely to hit), and the KV that is
        attended to.
        """
        flops = num_decode_seqs * spec.flops(1, context_len)
        num_bytes = spec.step_weight_bytes(num_prefill_tokens + num_decode_seqs)
        num_bytes += num_decode_seqs * spec.kv_read_bytes(1, context_len)
        if num_prefill_tokens:
            flops += spec.flops(num_prefill_tokens, num_cached_tokens + num_prefill_tokens)
            num_bytes += spec.kv_read_bytes(num_prefill_tokens, num_cached_tokens + num_prefill_tokens)
        return max(flops / self.flops_per_s, num_bytes / self.memory_bytes_per_s)

    def prefill_s(self, spec: ModelSpec, input_len: int, chunk_tokens: int | None = None) -> float:
        """A whole prompt alone, in one step or in chunks."""
        return sum(self.step_s(spec, size, start) for start, size in chunks(input_len, chunk_tokens or input_len))

    def added_s(
        self, spec: ModelSpec, input_len: int, chunk_tokens: int, num_decode_seqs: int, context_len: int
    ) -> float:
        """What the chunks of one prompt add, all together, to the steps of a decode batch that they run beside."""
        alone_s = self.step_s(spec, 0, 0, num_decode_seqs, context_len)
        mixed = (
            self.step_s(spec, size, start, num_decode_seqs, context_len)
            for start, size in chunks(input_len, chunk_tokens)
        )
        return sum(step_s - alone_s for step_s in mixed)


def chunks(input_len: int, chunk_tokens: int) -> list[tuple[int, int]]:
    """(start, size) of each chunk of a prompt."""
    return [(start, min(chunk_tokens, input_len - start)) for start in range(0, input_len, chunk_tokens)]
