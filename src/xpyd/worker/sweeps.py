"""The points that the probing experiments measure; plain numbers, no torch, no MPI."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

from annotated_types import Ge, Gt, MinLen

from xpyd.kv.codec.config import CodecConfig
from xpyd.placement import Division, Kind, Split, Width

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
class ExpertSweep:
    """Steps of prompts and of decodes, their sequences divided among the ranks of an instance of each width.

    ``emulated_nodes``: reckon as if the ranks of an instance were on so many nodes, neighbours together.
    """

    widths: Annotated[tuple[Width, ...], MinLen(2)]
    prompt_tokens: tuple[Annotated[int, Gt(0)], ...]  # of each prompt
    num_prompts: Annotated[int, Gt(0)]  # in a step
    num_decode_seqs: tuple[Annotated[int, Gt(0)], ...]
    context_len: Annotated[int, Gt(0)]  # of each decoding sequence
    num_domains: Annotated[int, Gt(0)]  # that the sequences of a step belong to, neighbours together
    words_per_domain: Annotated[int, Gt(0)]  # tokens that a domain's prompts are made of, none of another's
    num_steps: Annotated[int, Gt(0)]  # of each kind, each repeat
    num_repeats: Annotated[int, Gt(0)]
    block_size: Annotated[int, Gt(0)]
    emulated_nodes: Annotated[int, Gt(1)] | None = None

    def __post_init__(self) -> None:
        if self.widths[0] != 1 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(
                f"sweep.widths={list(self.widths)}: give widths in ascending order, with 1, the baseline, first"
            )

    @property
    def num_blocks(self) -> int:
        """KV blocks that the largest point needs."""
        points = [(self.num_prompts, n) for n in self.prompt_tokens]
        points += [(n, self.context_len) for n in self.num_decode_seqs]
        return max((seqs * -(-(tokens + 1) // self.block_size) for seqs, tokens in points), default=1)

    def nodes_of(self, nodes: list[str]) -> list[str]:
        """The node of each rank of an instance: as it is, or as it is to be taken for."""
        if self.emulated_nodes is None:
            return nodes
        return [f"emulated {rank * self.emulated_nodes // len(nodes)}" for rank in range(len(nodes))]


@dataclass(frozen=True)
class Way:
    """How an instance divides a step: by ``kind`` among ``width`` ranks, in one of the variants that the kind has."""

    kind: Kind = "tp"
    width: int = 1
    num_micro_batches: int | None = None  # pp
    split: Split | None = None  # cp

    @property
    def division(self) -> Division:
        return Division(self.kind, self.width)

    @property
    def variant(self) -> str:
        if self.num_micro_batches is not None:
            return f"{self.num_micro_batches} micro-batch{'es' * (self.num_micro_batches > 1)}"
        return self.split or ""

    def fits(self, num_decode_seqs: int) -> bool:
        """Whether it is for prompts (0) or for a decode batch of this size."""
        if self.kind == "cp":
            return num_decode_seqs == 0
        return self.kind != "pp" or num_decode_seqs >= (self.num_micro_batches or 1)


@dataclass(frozen=True)
class ScalingSweep:
    """Prompts of each length and decode batches of each size, on one instance of each kind and width.

    Pipelines run the decodes, with each number of micro-batches: 1 is the baseline. Context-parallel instances run the
    prompts, with each split: contiguous is the baseline.
    """

    kinds: Annotated[tuple[Kind, ...], MinLen(1)]
    num_micro_batches: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(1)]
    splits: Annotated[tuple[Split, ...], MinLen(1)]
    widths: Annotated[tuple[Width, ...], MinLen(2)]
    prompt_tokens: tuple[Annotated[int, Gt(0)], ...]
    num_decode_seqs: tuple[Annotated[int, Gt(0)], ...]
    context_len: Annotated[int, Gt(0)]  # of each decoding sequence
    num_steps: Annotated[int, Gt(0)]  # of each kind, each repeat
    num_repeats: Annotated[int, Gt(0)]
    block_size: Annotated[int, Gt(0)]

    def __post_init__(self) -> None:
        if self.widths[0] != 1 or list(self.widths) != sorted(set(self.widths)):
            raise ValueError(
                f"sweep.widths={list(self.widths)}: give widths in ascending order, with 1, the baseline, first"
            )

    @property
    def ways(self) -> list[Way]:
        """One rank alone, and then every kind, width and variant."""
        found = [Way()]
        for kind, width in product(self.kinds, self.widths[1:]):
            if kind == "pp":
                found += [Way(kind, width, num_micro_batches=count) for count in self.num_micro_batches]
            elif kind == "cp":
                found += [Way(kind, width, split=split) for split in self.splits]
            else:
                found.append(Way(kind, width))
        return found

    @property
    def num_blocks(self) -> int:
        """KV blocks that the largest point needs."""
        decodes = max(self.num_decode_seqs, default=0) * -(-(self.context_len + 1) // self.block_size)
        return max(decodes, -(-max(self.prompt_tokens, default=0) // self.block_size))


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


@dataclass(frozen=True)
class CodecSweep:
    """Codecs on the KV of ``num_prompts`` prompts of each length, and the link that their bill is computed for."""

    codecs: Annotated[tuple[CodecConfig, ...], MinLen(1)]
    input_lens: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(1)]
    num_prompts: Annotated[int, Gt(0)]
    output_len: Annotated[int, Gt(1)]  # token 0 comes with the prompt: one less is decoded from coded KV
    num_repeats: Annotated[int, Gt(0)]
    block_size: Annotated[int, Gt(0)]
    rate_gbps: Annotated[float, Gt(0)]  # bits per second
    alpha_s: Annotated[float, Ge(0)]  # per transfer
    gamma_s: Annotated[float, Ge(0)]  # per piece
    max_piece_bytes: Annotated[int, Gt(0)]
    prompts: str | None = None  # a JSON file with a list of lists of token ids; default: random tokens
    seed: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        labels = [config.label for config in self.codecs]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise ValueError(f"sweep.codecs names {' and '.join(twice)} twice; give each codec once")
        if "none" not in labels:
            raise ValueError(
                f"sweep.codecs={', '.join(labels)} lacks none, the null control that the others are held against; "
                "add {name: none}"
            )

    @property
    def max_tokens(self) -> int:
        """The longest context: the longest prompt and all its output."""
        return max(self.input_lens) + self.output_len

    def landing_blocks(self, input_len: int) -> int:
        """KV blocks of a prompt with all its output."""
        return -(-(input_len + self.output_len) // self.block_size)

    @property
    def num_blocks(self) -> int:
        """KV blocks of all prompts, where they were prefilled and where they decode."""
        each = (-(-length // self.block_size) + self.landing_blocks(length) for length in self.input_lens)
        return self.num_prompts * sum(each)

    def labels(self, checkpoint: str | None) -> list[str]:
        """What the tables must carry: neither random weights nor random prompts show what a trained model does."""
        return [
            *(["random weights"] if checkpoint is None else []),
            *(["random prompts"] if self.prompts is None else []),
        ]


@dataclass(frozen=True)
class HandoffSweep:
    """The points of the ``handoff`` experiment: one prompt at a time, moved in every mode and direction."""

    modes: tuple[Literal["whole", "layerwise", "chunkwise"], ...]
    directions: tuple[Literal["pull", "push"], ...]
    input_len: Annotated[int, Gt(0)]
    output_len: Annotated[int, Gt(1)]  # a request of one token never moves
    num_requests: Annotated[int, Gt(0)]
    num_repeats: Annotated[int, Gt(0)]
