"""What a codec does to the bill: fewer bytes on the wire, paid for with time at both ends. Closed form."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan
from typing import Annotated

from annotated_types import Ge, Gt, MinLen

from xpyd.economics.cost import LinkModel


@dataclass(frozen=True)
class CodecCost:
    """One request through a codec, all layers: its bytes in the pool and on the wire, pieces, seconds at both ends."""

    raw_bytes: float
    encoded_bytes: float
    num_raw_pieces: float
    num_pieces: float
    encode_s: float
    decode_s: float

    @property
    def codec_s(self) -> float:
        return self.encode_s + self.decode_s

    @property
    def saved_bytes(self) -> float:
        return self.raw_bytes - self.encoded_bytes


def coded_bill_s(link: LinkModel, cost: CodecCost) -> float:
    """``encode + transfer(encoded bytes) + decode``: nothing overlaps.

    The codec runs on the worker's own thread: with a layerwise transfer the wire can hide behind prefill, the codec's
    seconds cannot. So this favours codecs where transfers are hidden.
    """
    return cost.codec_s + link.transfer_s(cost.encoded_bytes, round(cost.num_pieces))


def direct_bill_s(link: LinkModel, cost: CodecCost) -> float:
    """The same request from pool to pool: no codec, no staging."""
    return link.transfer_s(cost.raw_bytes, round(cost.num_raw_pieces))


def codec_breakeven_bytes_per_s(gamma_s: float, cost: CodecCost) -> float:
    """The bandwidth at which both bills are equal: a codec pays below it.

    ``saved bytes / (codec time - gamma * saved pieces)``. 0 where it saves no bytes, inf where saved pieces alone pay
    for it, NaN where it changes nothing.
    """
    if cost.saved_bytes == 0 and cost.codec_s == 0:
        return nan
    if cost.saved_bytes <= 0:
        return 0.0
    to_earn_s = cost.codec_s - gamma_s * (cost.num_raw_pieces - cost.num_pieces)
    return cost.saved_bytes / to_earn_s if to_earn_s > 0 else inf


@dataclass(frozen=True)
class CodecTerm:
    """What a codec does to a hand-off, assumed or read from a run of ``codecs``: ``bytes_share`` of the KV's bytes
    travel, and each end's worker spends seconds on every decimal GB of KV, in which it runs no step.
    """

    name: Annotated[str, MinLen(1)]
    bytes_share: Annotated[float, Gt(0)]
    encode_s_per_gbyte: Annotated[float, Ge(0)]
    decode_s_per_gbyte: Annotated[float, Ge(0)]
