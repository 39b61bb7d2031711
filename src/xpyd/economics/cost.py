"""The transfer bill in closed form, the compute it hides behind, and the fits that turn measured points into both.

Payloads are bytes and rates bytes per second here; a link rate in Gb/s comes through ``xpyd.units`` (science.md 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import median

import numpy as np
from numpy.typing import NDArray

from xpyd.economics.nnls import Score, fit_relative, score
from xpyd.model.spec import ModelSpec


def kv_bytes(spec: ModelSpec, num_tokens: int, tensor_parallel: int = 1) -> int:
    """KV bytes of ``num_tokens`` tokens over all ranks of an instance, replicated heads counted."""
    return num_tokens * spec.kv_bytes_per_token(tensor_parallel)


def replication(spec: ModelSpec, tensor_parallel: int) -> float:
    """How many times the same KV byte is sent when ``tensor_parallel`` ranks share too few heads (or one latent)."""
    return spec.kv_bytes_per_token(tensor_parallel) / spec.kv_bytes_per_token()


@dataclass(frozen=True)
class LinkModel:
    """``alpha + gamma * num_descriptors + bytes * replication / bandwidth(concurrency)``.

    ``alpha_s`` is paid once per transfer, ``gamma_s`` per descriptor (one posted piece). Transfers under way at the
    same time share ``bytes_per_s`` equally, of which two move ``gain_2`` times as much together as one, four or more
    ``gain_4`` times: below 1 they are in each other's way, above 1 one alone does not fill the link.
    """

    alpha_s: float
    gamma_s: float
    bytes_per_s: float
    gain_2: float = 1.0
    gain_4: float = 1.0

    def gain(self, concurrency: float) -> float:
        """What so many transfers at once move together, over what one moves; linear between 1, 2 and 4."""
        if concurrency <= 1:
            return 1.0
        if concurrency <= 2:
            return 1 + (self.gain_2 - 1) * (concurrency - 1)
        return self.gain_2 + (self.gain_4 - self.gain_2) * min(concurrency - 2, 2.0) / 2

    def wire_s(
        self, num_bytes: float, num_descriptors: int = 1, concurrency: float = 1.0, replication: float = 1.0
    ) -> float:
        """The part of a transfer that grows with its size: all but ``alpha_s``."""
        share = concurrency / self.gain(concurrency)
        return self.gamma_s * num_descriptors + num_bytes * replication * share / self.bytes_per_s

    def transfer_s(
        self, num_bytes: float, num_descriptors: int = 1, concurrency: float = 1.0, replication: float = 1.0
    ) -> float:
        """Seconds to move ``num_bytes`` with ``concurrency`` transfers under way, this one included."""
        return self.alpha_s + self.wire_s(num_bytes, num_descriptors, concurrency, replication)


def effective_transfer_s(alpha_s: float, wire_s: float, num_layers: int, window_s: float) -> float:
    """Exposed seconds of a layerwise transfer: ``alpha + max(wire / L, wire - window * (L - 1) / L)``.

    Layer l may leave ``window_s * l / L`` after the window (the pass that completes the prompt) began, and the wire
    sends one layer after the other: a two-machine flow shop with equal jobs (Johnson 1954). Never below the last
    layer's piece. One layer is the whole-request transfer, with nothing hidden.
    """
    hidden_at_most = window_s * (num_layers - 1) / num_layers
    return alpha_s + max(wire_s / num_layers, wire_s - hidden_at_most)


def overlap_needed(transfer_s: float, prefill_s: float, target_penalty: float) -> float:
    """The share of the transfer to hide so that exposed / prefill <= ``target_penalty``; 0 where none is needed.

    ``1 - target * prefill / transfer``.
    """
    if transfer_s <= target_penalty * prefill_s:
        return 0.0
    return 1 - target_penalty * prefill_s / transfer_s


def breakeven_bytes_per_s(
    budget_s: float,
    num_bytes: float,
    alpha_s: float = 0.0,
    descriptors_s: float = 0.0,
    num_layers: int = 1,
    window_s: float = 0.0,
) -> float:
    """The bandwidth at which the exposed transfer costs exactly ``budget_s`` (the win); inf where none is enough.

    ``descriptors_s`` is gamma times their number. Inverts :func:`effective_transfer_s`, which with one layer is
    ``alpha + descriptors + bytes / bandwidth``.
    """
    spare_s = budget_s - alpha_s
    hidden_at_most = window_s * (num_layers - 1) / num_layers
    bytes_s = min(spare_s * num_layers, spare_s + hidden_at_most) - descriptors_s
    return num_bytes / bytes_s if bytes_s > 0 else inf


@dataclass(frozen=True)
class LinkPoint:
    """One timed transfer; ``concurrency`` counts the transfers that shared the link, this one included."""

    num_bytes: int
    num_descriptors: int
    seconds: float
    concurrency: int = 1


@dataclass(frozen=True)
class LinkFit:
    """A fitted link and its score on the fitted points. Held-out points are scored apart (:func:`score_link`)."""

    model: LinkModel
    score: Score


def fit_link(points: Sequence[LinkPoint]) -> LinkFit:
    """Alpha, gamma and bandwidth from timed transfers: relative least squares, no coefficient below zero.

    From those that had the link for themselves, where there are any; the others say what several at once gain. Where
    all points have as many descriptors, gamma cannot be told from alpha and is 0. Raises ValueError where times do not
    grow with bytes: then no bandwidth can be seen.
    """
    alone = [p for p in points if p.concurrency == 1] or points
    features = np.array([[1.0, p.num_descriptors, p.num_bytes * p.concurrency] for p in alone]).reshape(-1, 3)
    alpha, gamma, per_byte = fit_relative(features, _times(alone)).tolist()
    if per_byte == 0:
        raise ValueError(
            f"{len(points)} link points from {min(p.num_bytes for p in points)} to {max(p.num_bytes for p in points)} "
            "bytes show no time that grows with bytes; measure larger payloads"
        )
    model = LinkModel(alpha, gamma, 1 / per_byte)
    gain_2 = _gain(model, [p for p in points if p.concurrency == 2], 1.0)
    gain_4 = _gain(model, [p for p in points if p.concurrency == 4], gain_2)
    model = replace(model, gain_2=gain_2, gain_4=gain_4)
    return LinkFit(model, score_link(model, points))


def _gain(fair: LinkModel, points: Sequence[LinkPoint], unknown: float) -> float:
    """The median over points of as many transfers at once; ``fair`` has no gain."""
    if not points:
        return unknown
    fixed_s = [fair.alpha_s + fair.gamma_s * p.num_descriptors for p in points]
    bytes_s = [p.num_bytes * p.concurrency / fair.bytes_per_s for p in points]
    moving_s = [max(p.seconds - fixed, p.seconds / 10) for p, fixed in zip(points, fixed_s, strict=True)]
    return median(fair_s / own_s for fair_s, own_s in zip(bytes_s, moving_s, strict=True))


def score_link(model: LinkModel, points: Sequence[LinkPoint]) -> Score:
    predicted = [model.transfer_s(p.num_bytes, p.num_descriptors, p.concurrency) for p in points]
    return score(np.array(predicted), _times(points))


@dataclass(frozen=True)
class ComputePoint:
    """One timed engine step: a prompt chunk behind ``num_cached_tokens`` of its prompt, decodes, or both.

    ``num_context_tokens`` is the context of the decoding sequences, summed (as in ``records.StepRow``).
    """

    seconds: float
    num_prefill_tokens: int = 0
    num_cached_tokens: int = 0
    num_decode_seqs: int = 0
    num_context_tokens: int = 0


@dataclass(frozen=True)
class ComputeModel:
    """Seconds of one step: linear in prompt tokens, in their (query, key) pairs, in decodes and in their context.

    ``base_s`` (weights read, kernels started) is paid once per step, so a chunk beside decodes pays it no second time.
    ``hidden_s`` of it is not paid in a step with a chunk: weights are read while its rows are computed, as in a
    roofline, and so no more of it than the chunk takes. Below zero: a chunk costs that before its first token.
    """

    base_s: float
    prefill_token_s: float
    prefill_pair_s: float
    decode_seq_s: float
    context_token_s: float
    hidden_s: float = 0.0

    def chunk_s(self, num_tokens: float, num_cached_tokens: float = 0) -> float:
        """What a prompt chunk adds to a step, and so to the gap of every decode beside it; quadratic through pairs."""
        return self.prefill_token_s * num_tokens + self.prefill_pair_s * _pairs(num_tokens, num_cached_tokens)

    def spared_s(self, chunk_s: float) -> float:
        """What of a step's base is not paid beside chunks that take so long."""
        return min(self.hidden_s, chunk_s)

    def decode_s(self, num_seqs: float, context_len: float) -> float:
        """What ``num_seqs`` decodes of mean context ``context_len`` add to a step, ``base_s`` not included."""
        return num_seqs * (self.decode_seq_s + self.context_token_s * context_len)

    def step_s(
        self,
        num_prefill_tokens: float = 0,
        num_cached_tokens: float = 0,
        num_decode_seqs: float = 0,
        num_context_tokens: float = 0,
    ) -> float:
        """Seconds of one step; arguments as in :class:`ComputePoint`."""
        decodes = self.decode_seq_s * num_decode_seqs + self.context_token_s * num_context_tokens
        if not num_prefill_tokens:
            return self.base_s + decodes
        chunk_s = self.chunk_s(num_prefill_tokens, num_cached_tokens)
        return self.base_s - self.spared_s(chunk_s) + chunk_s + decodes

    def prefill_s(self, num_tokens: int, chunk_tokens: int | None = None) -> float:
        """A whole prompt alone on a rank: one step, or steps of ``chunk_tokens``, each of which pays its base."""
        size = chunk_tokens or num_tokens
        num_whole, last = (num_tokens - 1) // size, (num_tokens - 1) % size + 1
        spared_s = num_whole * self.spared_s(self.chunk_s(size)) + self.spared_s(self.chunk_s(last, num_tokens - last))
        return (num_whole + 1) * self.base_s - spared_s + self.chunk_s(num_tokens)


@dataclass(frozen=True)
class ComputeFit:
    """A fitted step model and its score on the fitted points."""

    model: ComputeModel
    score: Score


def fit_compute(points: Sequence[ComputePoint], hides: bool = False) -> ComputeFit:
    """The step model from timed steps: relative least squares, no coefficient below zero.

    ``hides``: also ``hidden_s``, from a base of its own for steps with a chunk, where there are steps of both kinds.
    Without it, a base that is not paid beside small chunks makes tokens look cheap, and so pairs dear.
    """
    hides = hides and len({p.num_prefill_tokens > 0 for p in points}) == 2
    rows = [
        [
            float(not (hides and p.num_prefill_tokens)),
            p.num_prefill_tokens,
            _pairs(p.num_prefill_tokens, p.num_cached_tokens),
            p.num_decode_seqs,
            p.num_context_tokens,
            float(hides and p.num_prefill_tokens > 0),
        ]
        for p in points
    ]
    base, token, pair, seq, context, with_chunk = fit_relative(np.array(rows).reshape(-1, 6), _times(points)).tolist()
    model = ComputeModel(base, token, pair, seq, context, base - with_chunk if hides else 0.0)
    return ComputeFit(model, score_compute(model, points))


def score_compute(model: ComputeModel, points: Sequence[ComputePoint]) -> Score:
    predicted = [
        model.step_s(p.num_prefill_tokens, p.num_cached_tokens, p.num_decode_seqs, p.num_context_tokens) for p in points
    ]
    return score(np.array(predicted), _times(points))


def _pairs(num_tokens: float, num_cached_tokens: float) -> float:
    """(query, key) pairs of a chunk under the causal mask."""
    return num_tokens * num_cached_tokens + num_tokens * (num_tokens + 1) / 2


def _times(points: Sequence[LinkPoint] | Sequence[ComputePoint]) -> NDArray[np.float64]:
    return np.array([p.seconds for p in points], dtype=np.float64)
