"""The ``economics`` experiment: both ledgers over prompt length and link rate, in closed form, before anything runs.

Its floor is 2: it fills rows of ``xpyd.records`` with the definitions of ``xpyd.metrics``. Every number is modeled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen

from xpyd.economics.cost import LinkModel, breakeven_bytes_per_s, effective_transfer_s, kv_bytes, overlap_needed
from xpyd.economics.roofline import Roofline, chunks
from xpyd.economics.verdict import decide_modeled
from xpyd.metrics import breakeven_output_tokens, penalty_ratio
from xpyd.model.spec import ModelSpec
from xpyd.records import EconomicsRow
from xpyd.units import GIGA, bytes_per_s_to_gbps, gbps_to_bytes_per_s

Tokens = Annotated[int, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class EconomicsConfig:
    """The points of the sweep, the link, one instance's compute, and the load beside which a request decodes."""

    input_lens: Annotated[tuple[Tokens, ...], MinLen(1)]
    output_len: Annotated[int, Gt(1)]  # with one token nothing is handed off
    rates_gbps: Annotated[tuple[Annotated[float, Gt(0)], ...], MinLen(1)]  # bits per second
    mode: Literal["whole", "layerwise"]
    alpha_s: Annotated[float, Ge(0)]  # per transfer
    gamma_s: Annotated[float, Ge(0)]  # per piece
    max_piece_bytes: Annotated[int, Gt(0)]
    peak_flops: Annotated[float, Gt(0)]  # per second, in the model's dtype, of all ranks of an instance
    compute_efficiency: Share
    memory_gbytes_s: Annotated[float, Gt(0)]  # decimal bytes per second, likewise
    memory_efficiency: Share
    decode_batch: Annotated[int, Gt(0)]  # sequences that decode together on an instance
    chunk_tokens: Tokens  # of the colocated arm's chunked prefill
    max_penalty: Annotated[float, Gt(0)]  # exposed / prefill that `overlap_needed` aims at
    negligible_win: Annotated[float, Ge(0)]  # share of the decode time below which a win counts as none
    tensor_parallel: Annotated[int, Gt(0)] = 1  # ranks of an instance: KV heads that they replicate are sent too

    def build(self) -> Roofline:
        memory_bytes_per_s = self.memory_gbytes_s * GIGA
        return Roofline(self.peak_flops * self.compute_efficiency, memory_bytes_per_s * self.memory_efficiency)


def sweep(spec: ModelSpec, config: EconomicsConfig) -> list[EconomicsRow]:
    """One row per prompt length and link rate, lengths outermost."""
    return [point(spec, config, length, rate_gbps) for length in config.input_lens for rate_gbps in config.rates_gbps]


def win_s(spec: ModelSpec, config: EconomicsConfig, input_len: int) -> float:
    """Decode seconds that a request saves when no prompt runs beside it.

    With ``decode_batch`` sequences in a steady state, as many prompts come while one request decodes (Little's law):
    each of their chunks lengthens one of its gaps. There are no more chunks to meet than it has gaps.
    """
    context_len = _context_len(config, input_len)
    added_s = config.build().added_s(spec, input_len, config.chunk_tokens, config.decode_batch, context_len)
    num_chunks = len(chunks(input_len, config.chunk_tokens))
    return added_s / num_chunks * min(config.output_len - 1, config.decode_batch * num_chunks)


def decode_s(spec: ModelSpec, config: EconomicsConfig, input_len: int) -> float:
    """Decode seconds of a request with nothing but its batch beside it."""
    step_s = config.build().step_s(spec, 0, 0, config.decode_batch, _context_len(config, input_len))
    return (config.output_len - 1) * step_s


def point(spec: ModelSpec, config: EconomicsConfig, input_len: int, rate_gbps: float) -> EconomicsRow:
    """Both ledgers of one request of ``input_len`` tokens over one link."""
    num_bytes = kv_bytes(spec, input_len, config.tensor_parallel)
    link = LinkModel(config.alpha_s, config.gamma_s, gbps_to_bytes_per_s(rate_gbps))
    num_pieces = spec.num_layers * -(-num_bytes // (spec.num_layers * config.max_piece_bytes))
    num_layers = spec.num_layers if config.mode == "layerwise" else 1
    prefill_s = config.build().prefill_s(spec, input_len)
    transfer_s = link.transfer_s(num_bytes, num_pieces)
    exposed_s = effective_transfer_s(link.alpha_s, link.wire_s(num_bytes, num_pieces), num_layers, prefill_s)
    saved_s = win_s(spec, config, input_len)
    worth_curing = saved_s > config.negligible_win * decode_s(spec, config, input_len)
    descriptors_s = link.gamma_s * num_pieces
    breakeven = breakeven_bytes_per_s(saved_s, num_bytes, link.alpha_s, descriptors_s, num_layers, prefill_s)
    return EconomicsRow(
        model=spec.name,
        rate_gbps=rate_gbps,
        input_len=input_len,
        output_len=config.output_len,
        kv_bytes=num_bytes,
        prefill_s=prefill_s,
        transfer_s=transfer_s,
        exposed_transfer_s=exposed_s,
        penalty_ratio=float(penalty_ratio(exposed_s, prefill_s)),
        win_s=saved_s,
        net_s=saved_s - exposed_s,
        breakeven_gbps=bytes_per_s_to_gbps(breakeven),
        breakeven_output_tokens=float(breakeven_output_tokens(exposed_s, saved_s / (config.output_len - 1))),
        overlap_needed=overlap_needed(transfer_s, prefill_s, config.max_penalty),
        verdict=decide_modeled(saved_s if worth_curing else 0.0, exposed_s).answer.value,
    )


def _context_len(config: EconomicsConfig, input_len: int) -> int:
    """Mean context of a decode, in tokens."""
    return input_len + config.output_len // 2
