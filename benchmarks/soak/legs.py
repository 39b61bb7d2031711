"""The legs of the soak: what fails, in which jobs. Two ranks of one role fail in every block, until few are left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from typing import Any, Literal

from benchmarks.soak.trial import Fault, Order

NUM_PAIRS = 5  # of victims in a job, one in each block
NUM_LEFT, NUM_OTHERS = 1, 2  # of the victims' role, and of the other one
BEATS = 6  # within detect_s
VARIANTS: tuple[dict[str, Any], ...] = (
    {"transport": "ucx", "mode": "layerwise", "policy": "retry"},
    {"transport": "ucx", "mode": "whole", "policy": "go_on"},
    {"transport": "ucx", "mode": "layerwise", "policy": "retry", "direction": "push"},
    {"transport": "mpi", "mode": "layerwise", "policy": "retry"},
)
# One-sided: nobody can say when a lost peer's reads are over, and every such hand-off puts its blocks into quarantine.
# So the pool is large.
NIXL: dict[str, Any] = {"transport": "nixl", "mode": "layerwise", "policy": "retry", "num_kv_blocks": 512}


@dataclass(frozen=True)
class Leg:
    """One kind of fault. ``role``: whose ranks fail; none where requests are what fails. ``late``: see Order."""

    key: str
    name: str
    fault: Fault
    role: Literal["prefill", "decode"] | None = None
    late: bool = False

    def orders(self, detect_s: float, seed: int) -> Iterator[Order]:
        """Jobs without end; the caller stops when it has enough faults."""
        variants = (*VARIANTS, NIXL) if self.role is not None and find_spec("nixl") is not None else VARIANTS
        for number in count():
            variant = variants[number % len(variants)]
            order = self._without_victims(variant) if self.role is None else self._with_victims(variant)
            yield replace(order, seed=seed + number, detect_s=detect_s, beat_interval_s=detect_s / BEATS)

    def _without_victims(self, variant: dict[str, Any]) -> Order:
        blocks: tuple[tuple[int, ...], ...] = ((),) * 10
        settings = {**variant, "num_kv_blocks": 24 if self.fault == "exhaust" else 64}
        return Order(self.fault, NUM_OTHERS, NUM_OTHERS, blocks, **settings)

    def _with_victims(self, variant: dict[str, Any]) -> Order:
        num_failing = 2 * NUM_PAIRS + NUM_LEFT
        num_prefill, num_decode = (num_failing, NUM_OTHERS) if self.role == "prefill" else (NUM_OTHERS, num_failing)
        first = 1 if self.role == "prefill" else 1 + num_prefill
        victims = tuple((first + 2 * i, first + 2 * i + 1) for i in range(NUM_PAIRS))
        return Order(self.fault, num_prefill, num_decode, victims, late=self.late, **variant)


LEGS = (
    Leg("kill-prefill", "kill -9 of a prefill rank", "kill", "prefill"),
    Leg("kill-decode", "kill -9 of a decode rank", "kill", "decode"),
    Leg("stop-prefill", "SIGSTOP of a prefill rank", "stop", "prefill"),
    Leg("stop-decode", "SIGSTOP of a decode rank", "stop", "decode"),
    Leg("stop-late", "SIGSTOP after the last token", "stop", "decode", late=True),
    Leg("link-prefill", "link of a prefill node down", "cut", "prefill"),
    Leg("link-decode", "link of a decode node down", "cut", "decode"),
    Leg("abort", "request aborted in mid-transfer", "abort"),
    Leg("exhaust", "decode pool exhausted", "exhaust"),
)
