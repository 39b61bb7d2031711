"""The points that the probing experiments measure; plain numbers, no torch, no MPI."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

WIRE_BLOCK_BYTES = 64 * 1024  # blocks of the ``transfer`` experiment's patterns


@dataclass(frozen=True)
class WireSweep:
    """The points of the ``transfer`` experiment: every size with every layer count and number of pieces in flight."""

    payload_bytes: tuple[Annotated[int, Gt(0)], ...]
    num_layers: tuple[Annotated[int, Gt(0)], ...]
    pieces_in_flight: tuple[Annotated[int, Gt(0)], ...]
    max_piece_bytes: Annotated[int, Gt(0)]
    num_repeats: Annotated[int, Gt(0)]
    held_out_bytes: tuple[Annotated[int, Gt(0)], ...] = ()  # measured, not fitted: the model is scored on these

    def __post_init__(self) -> None:
        for size in (*self.payload_bytes, *self.held_out_bytes):
            for layers in self.num_layers:
                layer_bytes, rest = divmod(size, layers)
                if rest or layer_bytes % min(layer_bytes, WIRE_BLOCK_BYTES):
                    raise ValueError(
                        f"payload of {size} bytes does not divide into num_layers={layers} layers of whole blocks "
                        f"({WIRE_BLOCK_BYTES} bytes, or one smaller block); use powers of two"
                    )

    @property
    def buffer_bytes(self) -> int:
        return max((*self.payload_bytes, *self.held_out_bytes))


@dataclass(frozen=True)
class InterferenceSweep:
    """Chunks of each size beside decode batches of each size; ``context_len`` tokens per decoding sequence."""

    chunk_tokens: tuple[Annotated[int, Gt(0)], ...]
    num_decode_seqs: tuple[Annotated[int, Gt(0)], ...]
    context_len: Annotated[int, Gt(0)]
    num_gaps: Annotated[int, Gt(1)]
    num_repeats: Annotated[int, Gt(0)]

    def num_blocks(self, block_size: int) -> int:
        """KV blocks that the largest point needs."""
        per_sequence = -(-(self.context_len + self.num_gaps + 1) // block_size)
        return max(self.num_decode_seqs) * per_sequence + -(-max(self.chunk_tokens) // block_size)


@dataclass(frozen=True)
class ContentionSweep:
    """Hand-offs of each prompt length to a decode rank that runs each batch, from a source that idles or prefills."""

    prompt_tokens: tuple[Annotated[int, Gt(0)], ...]
    num_decode_seqs: tuple[Annotated[int, Gt(0)], ...]
    context_len: Annotated[int, Gt(0)]  # of each decoding sequence
    prefill_tokens: Annotated[int, Gt(0)]  # of the source's steps while it prefills
    num_gaps: Annotated[int, Gt(1)]  # of each decode batch alone, each repeat
    num_repeats: Annotated[int, Gt(0)]
    pieces_in_flight: Annotated[int, Gt(0)]
    max_piece_bytes: Annotated[int, Gt(0)]

    def num_blocks(self, block_size: int) -> int:
        """KV blocks that the largest point needs, on either end."""
        decodes = max(self.num_decode_seqs) * -(-(self.context_len + self.num_gaps) // block_size)
        prefill = -(-self.prefill_tokens // block_size)
        return -(-max(self.prompt_tokens) // block_size) + max(decodes, prefill)
