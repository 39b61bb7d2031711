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
class Packed:
    """The segments of a step one behind the other."""

    tokens: array[int]
    bounds: array[int]  # four numbers of each segment, see native.Step
    tables: array[int]
    sampled: array[int]  # rows whose logits are wanted


class CompiledSteps:
    """The steps of one runner of a whole model. Not for two steps at a time: its scratch memory is kept, and grows."""

    def __init__(self, kernels: native.Kernels, spec: ModelSpec, weights: Weights, rope: Rope, cache: KVCache) -> None:
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
        self._scratch = torch.empty(0)

    def pack(self, segments: Sequence[Segment]) -> Packed:
        """``segments`` as C reads them."""
        tokens, bounds, tables, sampled = array("q"), array("q"), array("q"), array("q")
        block_size = self._cache.block_size
        for segment in segments:
            end = segment.end
            bounds.extend((len(tokens), len(segment.tokens), segment.start, len(tables)))
            tokens.extend(segment.tokens)
            tables.extend(segment.block_table[: -(-end // block_size)])
            if segment.samples:
                sampled.append(len(tokens) - 1)
        return Packed(tokens, bounds, tables, sampled)

    def run(self, packed: Packed, on_layer: Callable[[int], None] | None) -> torch.Tensor:
        """Logits of the segments that sample, [num_samples, vocab_size], in their order; KV goes into the pool."""
        logits = torch.empty((len(packed.sampled), self._spec.vocab_size))
        step = native.Step(
            num_rows=len(packed.tokens),
            num_segments=len(packed.bounds) // 4,
            num_samples=len(packed.sampled),
            tokens=_address(packed.tokens),
            tables=_address(packed.tables),
            sampled=_address(packed.sampled),
            segments=_address(packed.bounds),
            logits=logits.data_ptr(),
        )
        self._lend(step)
        for layer in range(self._spec.num_layers + 1):
            if self._advance(ctypes.addressof(self._decoder), ctypes.addressof(step), layer):
                raise MemoryError(f"no memory for attention in a step of {len(packed.tokens)} tokens")
            if on_layer is not None and layer < self._spec.num_layers:
                on_layer(layer)
        return logits

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


def _address(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]
