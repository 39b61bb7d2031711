"""What a prediction starts from: the load that will be offered, the limits of the ranks, and what calibration found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any, Literal

from xpyd.economics.cost import (
    ComputeFit,
    ComputeModel,
    ComputePoint,
    LinkFit,
    LinkModel,
    LinkPoint,
    fit_compute,
    fit_link,
)
from xpyd.economics.delays import NO_DELAYS, Delays
from xpyd.economics.ledger import length_class
from xpyd.economics.nnls import Score
from xpyd.model.spec import ModelSpec
from xpyd.request import Request


@dataclass(frozen=True)
class RequestClass:
    """Requests alike in length: their share of all, and their mean lengths in tokens."""

    share: float
    input_len: float
    output_len: float

    @property
    def num_gaps(self) -> float:
        """Decode steps of a request: token 0 comes from prefill."""
        return max(0.0, self.output_len - 1)

    @property
    def context_len(self) -> float:
        """Mean context while it decodes: its prompt and half of its output."""
        return self.input_len + self.output_len / 2


def classes_of(requests: Iterable[Request]) -> tuple[RequestClass, ...]:
    """One class per length bucket that occurs among ``requests`` (planned ones: nothing is sent yet)."""
    ordered = sorted(requests, key=lambda request: request.input_len)
    groups = [list(group) for _, group in groupby(ordered, key=lambda request: length_class(request.input_len))]
    return tuple(
        RequestClass(len(group) / len(ordered), fmean(r.input_len for r in group), fmean(r.output_len for r in group))
        for group in groups
    )


@dataclass(frozen=True)
class Calibration:
    """The fitted step model and link, and what messages take; no point is of what the prediction is scored on."""

    compute: ComputeFit
    link: LinkFit
    delays: Delays = NO_DELAYS


def fit_calibration(compute_points: Sequence[ComputePoint], link_points: Sequence[LinkPoint]) -> Calibration:
    """Fit both models. Raises ValueError, see ``fit_link``."""
    return Calibration(fit_compute(compute_points), fit_link(link_points))


def calibration_from(content: Mapping[str, Any]) -> Calibration:
    """A calibration as ``dataclasses.asdict`` gave it, from predicted.json."""
    compute, link = content["compute"], content["link"]
    return Calibration(
        ComputeFit(ComputeModel(**compute["model"]), Score(**compute["score"])),
        LinkFit(LinkModel(**link["model"]), Score(**link["score"])),
        Delays(**content.get("delays", {})),  # none in runs of before messages were measured
    )


@dataclass(frozen=True)
class Scenario:
    """A comparison to predict: xPyD against x + y colocated ranks, on blocks of ``num_requests``.

    Exactly one of ``rate_rps`` (open loop) and ``concurrency`` (closed loop) is given. ``arrival_cv2`` is the squared
    coefficient of variation of interarrival times: 1 for Poisson, 0 for fixed intervals.
    """

    spec: ModelSpec
    classes: tuple[RequestClass, ...]
    num_requests: int
    num_prefill: int
    num_decode: int
    policy: Literal["chunked", "prefill_first", "static"]  # static is refused: no formula knows its wait for a batch
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_kv_blocks: int
    mode: Literal["whole", "layerwise", "chunkwise"]
    max_piece_bytes: int
    router: Literal["round_robin", "least_outstanding"] = "least_outstanding"
    rate_rps: float | None = None
    concurrency: int | None = None
    arrival_cv2: float = 1.0

    def __post_init__(self) -> None:
        if self.policy == "static":
            raise ValueError(
                "policy=static: the cost model knows no wait for a static batch to end; choose chunked or prefill_first"
            )
        if (self.rate_rps is None) == (self.concurrency is None):
            raise ValueError(
                f"rate_rps={self.rate_rps}, concurrency={self.concurrency}: give one, a rate for an open loop or a "
                "concurrency for a closed one"
            )
        total = sum(cls.share for cls in self.classes)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"classes: their shares add up to {total}, not 1")

    @property
    def num_colocated(self) -> int:
        return self.num_prefill + self.num_decode

    def mean(self, by_class: Sequence[float]) -> float:
        """The mean over requests of something that each class has one value of."""
        return sum(cls.share * value for cls, value in zip(self.classes, by_class, strict=True))

    @property
    def chunk_tokens(self) -> int | None:
        """Prompt tokens of one step; None where prompts run whole."""
        return self.max_num_batched_tokens if self.policy == "chunked" else None

    @property
    def num_seats(self) -> int:
        """Sequences that one rank can hold: its limit, or fewer where their KV fills the pool."""
        mean_blocks = self.mean([self.blocks(cls.input_len + cls.output_len) for cls in self.classes])
        return max(1, min(self.max_num_seqs, int(self.num_kv_blocks // mean_blocks)))

    def blocks(self, num_tokens: float) -> int:
        """KV blocks that ``num_tokens`` tokens take: whole ones."""
        return -int(-num_tokens // self.block_size)

    def transfer_bytes(self, input_len: float) -> int:
        """Bytes that a hand-off moves: whole KV blocks, every layer."""
        return self.blocks(input_len) * self.spec.block_bytes(self.block_size) * self.spec.num_layers

    def num_descriptors(self, input_len: float) -> int:
        """Pieces of a hand-off where a request's blocks are neighbours: each layer cut at ``max_piece_bytes``."""
        layer_bytes = self.blocks(input_len) * self.spec.block_bytes(self.block_size)
        return self.spec.num_layers * -(-layer_bytes // self.max_piece_bytes)
