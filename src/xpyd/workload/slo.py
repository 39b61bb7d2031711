"""Service level objectives: the limits on TTFT and ITL that a request must meet to count towards goodput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt


@dataclass(frozen=True)
class SloConfig:
    """The two limits; how a request is held against them is the metric's business (``attainment``)."""

    ttft_s: Annotated[float, Gt(0)]
    itl_s: Annotated[float, Gt(0)]
