"""What a step takes on an instance, in whole picoseconds, so that many steps at once add up to exactly the same."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

from mypy_extensions import mypyc_attr

from xpyd.economics.cost import ComputeModel
from xpyd.units import NS_PER_S

PS_PER_NS = 1000
PS_PER_S = NS_PER_S * PS_PER_NS


def to_ps(seconds: float) -> int:
    return round(seconds * PS_PER_S)


def to_ns(time_ps: int) -> int:
    """A stamp as tables have it."""
    return time_ps // PS_PER_NS


@dataclass(frozen=True)
class StepCosts:
    """A step model at one instance's speed; decodes are linear in batch and context (``economics.cost``)."""

    compute: ComputeModel
    slowness: float  # 2.0: every step takes twice as long as the model says
    base_ps: int
    seq_ps: int
    token_ps: int
    hidden_ps: int  # of the base, not paid in a step with chunks, as far as these take so long

    @classmethod
    def of(cls, compute: ComputeModel, slowness: float) -> StepCosts:
        parts = (compute.base_s, compute.decode_seq_s, compute.context_token_s, compute.hidden_s)
        ps = [to_ps(s * slowness) for s in parts]
        return cls(compute, slowness, *ps)

    def chunk_ps(self, num_tokens: int, num_cached_tokens: int) -> int:
        return to_ps(self.compute.chunk_s(num_tokens, num_cached_tokens) * self.slowness)


@mypyc_attr(acyclic=True)
class Stretch:
    """Steps in a row: the first takes ``first_ps``, each of the others ``slope_ps`` more than the one before."""

    __slots__ = ("begin_ps", "first_ps", "num_steps", "slope_ps")

    def __init__(self, begin_ps: int, first_ps: int, slope_ps: int, num_steps: int) -> None:
        self.begin_ps = begin_ps
        self.first_ps = first_ps
        self.slope_ps = slope_ps
        self.num_steps = num_steps

    @property
    def end_ps(self) -> int:
        return self.begin_ps + self.after(self.num_steps)

    def after(self, num_steps: int) -> int:
        """Picoseconds that the first ``num_steps`` steps take."""
        return num_steps * self.first_ps + self.slope_ps * (num_steps * (num_steps - 1) // 2)

    def step_ps(self, index: int) -> int:
        return self.first_ps + self.slope_ps * index

    def ended_before(self, now_ps: int) -> int:
        """Steps of the stretch that end before ``now_ps``, not at it."""
        span, a, d = now_ps - self.begin_ps - 1, self.first_ps, self.slope_ps
        if span < a:
            return 0
        if d == 0:
            ended = span // a
        else:
            b = 2 * a - d  # d n^2 + b n <= 2 span
            ended = (isqrt(b * b + 8 * d * span) - b) // (2 * d)
        return ended if ended < self.num_steps else self.num_steps
