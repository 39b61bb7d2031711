"""Whole steps in C: a dense decoder in float32 on a CPU, one call per layer from the tokens to the logits.

A step of a small model, or of few tokens, is a hundred short operations; called one by one from Python they take as
long as the products. Here each layer is one call, which also keeps activations in cache from one product to the next.
What it does is what ``transformer`` does, for the models it knows; for all others that file is used.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch

from xpyd import native
from xpyd.kv.cache import KVCache
from xpyd.model.attention import GroupedAttention
from xpyd.model.layer import Layer
from xpyd.model.mlp import DenseMlp
from xpyd.model.rope import Rope
from xpyd.model.segment import Segment
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import Linear
from xpyd.model.weights import Weights


@dataclass(frozen=True, slots=True)
class Room:
    """What steps of so many rows and samples write to, and the struct that says where; kept while they are so many."""

    step: native.Step
    logits: torch.Tensor  # [num_samples, vocab_size]
    tokens: array[int]  # of each sample: the place of its largest logit
    margins: array[float]  # and what that exceeds the second by


class BlockTables:
    """The block tables of a step's segments as C reads them: rows of ``width`` numbers.

    Most are those of the step before, and such rows stay: to compare two lists of the same objects reads the lists,
    while to copy one reads every number in it, each from somewhere else in memory.
    """

    def __init__(self) -> None:
        self.width = 0
        self.rows: array[int] = array("q")
        self._held: list[list[int]] = []  # copies of the tables in the rows

    def hold(self, tables: list[list[int]]) -> bool:
        """Make row i say what ``tables[i]`` says; False where rows have moved."""
        if tables == self._held:
            return True
        stay = True
        widest = max(map(len, tables))
        if widest > self.width or len(tables) * self.width > len(self.rows):
            self.width = max(self.width, 1 << (widest - 1).bit_length())
            self.rows = array("q", bytes(8 * self.width * len(tables)))
            self._held = []
            stay = False
        for row, table in enumerate(tables):
            if row >= len(self._held) or self._held[row] != table:
                begin = row * self.width
                self.rows[begin : begin + len(table)] = array("q", table)
                self._held[row : row + 1] = [table[:]]
        del self._held[len(tables) :]
        return stay

    def resize(self, row: int, table: list[int]) -> None:
        """``table``, of row ``row``, has got longer or shorter at its end; it may have ``width`` numbers."""
        held = self._held[row]
        del held[len(table) :]
        begin = row * self.width
        self.rows[begin + len(held) : begin + len(table)] = array("q", table[len(held) :])
        held += table[len(held) :]


class CompiledSteps:
    """The steps of one runner of a whole model. Not for two steps at a time: its scratch memory is kept, and grows."""

    def __init__(self, kernels: native.Kernels, spec: ModelSpec, weights: Weights, rope: Rope, cache: KVCache) -> None:
        self.kernels = kernels
        self._advance = kernels.xpyd_advance
        self._spec, self._weights, self._rope, self._cache = spec, weights, rope, cache  # kept: C has their addresses
        self._layers = (native.Layer * spec.num_layers)(*map(_layer, weights.layers))
        self._decoder = native.Decoder(
            embedding=weights.embedding.data_ptr(),
            norm=weights.norm.data_ptr(),
            frequencies=rope.frequencies.data_ptr(),
            layers=self._layers,
            head=_matrix(weights.head),
            pool=cache.address(0),
            num_layers=spec.num_layers,
            hidden=spec.hidden_size,
            inner=spec.intermediate_size,
            layer_stride=cache.pool.stride(0),
            window=spec.sliding_window or 0,
            paging=cache.paging(spec.num_heads),
            eps=spec.rms_norm_eps,
            magnitude=rope.magnitude,
            num_threads=torch.get_num_threads(),
        )
        self._largest = kernels.xpyd_largest
        self.tables = BlockTables()
        self._scratch = torch.empty(0)
        self._room = self._make_room(0, 0)
        self._packed = array("q")  # of the running step: tokens, four numbers of each segment, rows that sample

    def run(self, segments: Sequence[Segment], on_layer: Callable[[int], None] | None) -> torch.Tensor:
        """Logits of the segments that sample, [num_samples, vocab_size], in their order; KV goes into the pool.

        The next step writes over them.
        """
        self._advance_all(self._pack(segments), on_layer)
        return self._room.logits

    def _pack(self, segments: Sequence[Segment]) -> native.Step:
        """``segments`` as C reads them, until the next step, and where it writes to."""
        if self.tables.hold([segment.block_table for segment in segments]) and self._decode_on(segments):
            return self._room.step
        return self._pack_anew(segments)

    def _decode_on(self, segments: Sequence[Segment]) -> bool:
        """Pack a step like the one before, a token of every sequence; False where this is another one."""
        packed, num_rows = self._packed, self._room.step.num_rows
        if not len(packed) == 6 * num_rows == 6 * len(segments):
            return False
        at = num_rows + 2
        for row, segment in enumerate(segments):
            if len(segment.tokens) > 1 or not segment.samples:
                return False
            packed[row], packed[at] = segment.tokens[0], segment.start
            at += 4
        return True

    def _pack_anew(self, segments: Sequence[Segment]) -> native.Step:
        width = self.tables.width
        tokens: list[int] = []
        bounds: list[int] = []
        sampled: list[int] = []
        for number, segment in enumerate(segments):
            bounds += (len(tokens), len(segment.tokens), segment.start, number * width)
            tokens += segment.tokens
            if segment.samples:
                sampled.append(len(tokens) - 1)
        self._packed = packed = array("q", tokens + bounds + sampled)
        num_rows, num_samples = len(tokens), len(sampled)
        step = self._room.step
        if num_rows != step.num_rows or num_samples != step.num_samples:
            self._room = self._make_room(num_rows, num_samples)
            step = self._room.step
        step.num_segments = len(segments)
        step.tokens = begin = _address(packed)
        step.segments = begin = begin + num_rows * packed.itemsize
        step.sampled = begin + len(bounds) * packed.itemsize
        step.tables = _address(self.tables.rows)
        return step

    def _advance_all(self, step: native.Step, on_layer: Callable[[int], None] | None) -> None:
        decoder, at, num_layers = ctypes.addressof(self._decoder), ctypes.addressof(step), self._spec.num_layers
        if on_layer is None:
            if self.kernels.xpyd_run(decoder, at):
                self.out_of_memory()
            return
        for layer in range(num_layers + 1):
            if self._advance(decoder, at, layer):
                self.out_of_memory()
            if layer < num_layers:
                on_layer(layer)

    def out_of_memory(self) -> NoReturn:
        """What C says of a step by a number that is not 0. Raises MemoryError."""
        raise MemoryError(f"no memory for attention in a step of {self._room.step.num_rows} tokens")

    def largest(self) -> tuple[list[int], list[float]]:
        """Of the last step's logits: the token of each row's largest, and what it exceeds the second by."""
        self._draw()
        return self._room.tokens.tolist(), self._room.margins.tolist()

    def run_again(self, on_layer: Callable[[int], None]) -> None:
        """Run the step that lies packed in place of the last one, and draw its tokens; see ``model.follow``."""
        self._advance_all(self._room.step, on_layer)
        self._draw()

    @property
    def only_decodes(self) -> bool:
        """Whether the last step was a token of each of its sequences, and drew the next one."""
        step = self._room.step
        return bool(step.num_rows == step.num_segments == step.num_samples > 0)

    def ledger(self, history: array[int], stamps: array[int], message: int, offset_ns: int) -> native.Ledger:
        """For the steps that follow on the last one."""
        step, room = self._room.step, self._room
        return native.Ledger(
            decoder=ctypes.pointer(self._decoder),
            step=ctypes.pointer(step),
            num_rows=step.num_rows,
            drawn=_address(room.tokens),
            margins=_address(room.margins),
            tokens=step.tokens,
            segments=step.segments,
            history=_address(history),
            stamps=_address(stamps),
            message=message,
            offset_ns=offset_ns,
        )

    def _draw(self) -> None:
        step, tokens, margins = self._room.step, self._room.tokens, self._room.margins
        self._largest(step.logits, len(tokens), self._spec.vocab_size, _address(tokens), _address(margins))

    def _make_room(self, num_rows: int, num_samples: int) -> Room:
        logits = torch.empty((num_samples, self._spec.vocab_size))
        step = native.Step(num_rows=num_rows, num_samples=num_samples, logits=logits.data_ptr())
        self._lend(step)
        return Room(step, logits, array("q", bytes(8 * num_samples)), array("f", bytes(4 * num_samples)))

    def _lend(self, step: native.Step) -> None:
        """Scratch memory for the activations of a step."""
        spec, num_rows = self._spec, step.num_rows
        heads, at_once = spec.num_heads * spec.head_dim, min(num_rows, native.ROWS)
        sizes = {
            "x": num_rows * spec.hidden_size,
            "qkv": num_rows * (heads + 2 * spec.num_kv_heads * spec.head_dim),
            "attended": num_rows * heads,
            "angles": num_rows * spec.head_dim,
            "normed": at_once * spec.hidden_size,
            "inner": at_once * 2 * spec.intermediate_size,
            "gated": at_once * spec.intermediate_size,
            "last": step.num_samples * spec.hidden_size,
        }
        if sum(sizes.values()) > len(self._scratch):
            self._scratch = torch.empty(sum(sizes.values()))
        address = self._scratch.data_ptr()
        for name, size in sizes.items():
            setattr(step, name, address)
            address += size * self._scratch.itemsize


def compiled_steps(spec: ModelSpec, weights: Weights, rope: Rope, cache: KVCache) -> CompiledSteps | None:
    """None for what they do not know: other attention and MLPs, number types, devices and processors."""
    kernels = native.multiplying()
    if kernels is None or not cache.attendable or cache.pool.dtype != torch.float32:
        return None
    known = all(
        isinstance(layer.attention, GroupedAttention) and isinstance(layer.mlp, DenseMlp) for layer in weights.layers
    )
    return CompiledSteps(kernels, spec, weights, rope, cache) if known else None


def _layer(layer: Layer) -> native.Layer:
    attention, mlp = layer.attention, layer.mlp
    assert isinstance(attention, GroupedAttention)
    assert isinstance(mlp, DenseMlp)
    return native.Layer(
        input_norm=_pointer(layer.input_norm),
        qkv_bias=_pointer(attention.qkv.bias),
        q_norm=_pointer(attention.q_norm),
        k_norm=_pointer(attention.k_norm),
        post_norm=_pointer(layer.post_norm),
        qkv=_matrix(attention.qkv),
        o=_matrix(attention.o),
        gate_up=_matrix(mlp.gate_up),
        down=_matrix(mlp.down),
    )


def _matrix(linear: Linear) -> native.Matrix:
    assert linear.panels is not None, "a whole step multiplies with panels"
    return native.Matrix(linear.panels.data_ptr(), *linear.shape)


def _pointer(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _address(numbers: array[int] | array[float]) -> int:
    return numbers.buffer_info()[0]
