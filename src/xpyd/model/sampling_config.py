"""How tokens are chosen; apart from the choosing itself, so that front ends need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge


@dataclass(frozen=True)
class SamplingConfig:
    """``temperature=0`` is greedy. ``top_k=0`` keeps the whole vocabulary."""

    temperature: Annotated[float, Ge(0)] = 0.0
    top_k: Annotated[int, Ge(0)] = 0

    def __post_init__(self) -> None:
        if self.top_k and not self.temperature:
            raise ValueError(f"top_k={self.top_k} with temperature=0: greedy ignores top_k; set a temperature")
