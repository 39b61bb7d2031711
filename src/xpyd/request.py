"""A request, and the stages of its way.

Everything here is plain data: no tensors, no ranks to talk to. Stamps are integer nanoseconds on the client's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray


class Stage(StrEnum):
    """The stages of a request, in order. ``TRANSFER_BEGIN`` may precede ``PREFILL_END`` (layerwise hand-off)."""

    ARRIVED = "arrived"  # due at the client: the open-loop arrival time, not the time it was sent
    ROUTED = "routed"  # sent to a worker
    PREFILL_BEGIN = "prefill_begin"
    PREFILL_END = "prefill_end"
    TRANSFER_BEGIN = "transfer_begin"  # first span posted by the source
    TRANSFER_END = "transfer_end"  # last byte landed at the destination
    DECODE_ADMIT = "decode_admit"  # in a decode batch
    FINISHED = "finished"
    FAILED = "failed"
    RETRIED = "retried"  # routed anew after a rank was lost; the reason says which


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the workload made it. Lengths in tokens; ``arrival_offset_ns`` counts from its block's begin."""

    request_id: int
    arrival_offset_ns: int
    input_len: int
    output_len: int
    class_name: str = "default"
    seed: int = 0
    prefix_len: int = 0  # its first tokens are those of every request with this ``prefix_seed``
    prefix_seed: int = 0
    priority: int = 0  # for the eviction of its KV

    def prompt(self, vocab_size: int) -> NDArray[np.int32]:
        """The prompt's token ids, shape [input_len], made from the seeds alone: both arms see the same prompt."""
        own = np.random.default_rng(self.seed).integers(0, vocab_size, size=self.input_len, dtype=np.int32)
        if self.prefix_len:
            shared = np.random.default_rng(self.prefix_seed)
            own[: self.prefix_len] = shared.integers(0, vocab_size, size=self.prefix_len, dtype=np.int32)
        return own
