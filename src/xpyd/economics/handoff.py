"""One prompt's hand-off in each mode, alone on a fitted link: what is exposed, and the floor that nothing hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xpyd.economics.cost import ComputeModel, LinkModel, effective_transfer_s
from xpyd.model.spec import ModelSpec


@dataclass(frozen=True)
class HandoffTimes:
    """Seconds. ``floor_s`` is the last part alone: what can leave only once the whole prompt is computed."""

    prefill_s: float
    transfer_s: float
    exposed_transfer_s: float
    floor_s: float


@dataclass(frozen=True)
class Prompt:
    """A prompt and the engine it runs on; ``chunk_tokens`` is None where prompts run whole."""

    spec: ModelSpec
    input_len: int
    chunk_tokens: int | None
    block_size: int
    max_piece_bytes: int

    @property
    def kv_bytes(self) -> int:
        """Whole KV blocks, all layers."""
        return -(-self.input_len // self.block_size) * self.spec.block_bytes(self.block_size) * self.spec.num_layers

    @property
    def last_chunk_tokens(self) -> int:
        return (self.input_len - 1) % (self.chunk_tokens or self.input_len) + 1


def handoff_times(
    compute: ComputeModel, link: LinkModel, prompt: Prompt, mode: Literal["whole", "layerwise", "chunkwise"]
) -> HandoffTimes:
    """The prefill and its hand-off, both alone on their rank and link (science.md 3: ``effective_transfer_s``)."""
    prefill_s = compute.prefill_s(prompt.input_len, prompt.chunk_tokens)
    last = prompt.last_chunk_tokens
    num_parts, window_s, last_share = 1, 0.0, 1.0
    if mode == "layerwise":
        num_parts, window_s = prompt.spec.num_layers, compute.step_s(last, prompt.input_len - last)
        last_share = 1 / num_parts
    elif mode == "chunkwise" and prompt.chunk_tokens is not None:
        num_parts, window_s = -(-prompt.input_len // prompt.chunk_tokens), prefill_s
        last_share = last / prompt.input_len
    wire_s = _wire_s(link, prompt, prompt.kv_bytes)
    return HandoffTimes(
        prefill_s=prefill_s,
        transfer_s=link.alpha_s + wire_s,
        exposed_transfer_s=effective_transfer_s(link.alpha_s, wire_s, num_parts, window_s),
        floor_s=link.alpha_s + _wire_s(link, prompt, last_share * prompt.kv_bytes),
    )


def _wire_s(link: LinkModel, prompt: Prompt, num_bytes: float) -> float:
    """The bytes in pieces as large as they may be."""
    return link.wire_s(num_bytes, -int(-num_bytes // prompt.max_piece_bytes))
