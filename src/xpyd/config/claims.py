"""Schema of the experiment that puts the field's claims to the test by running the others."""

from __future__ import annotations

from dataclasses import dataclass, field

from xpyd.claims_choice import ClaimsConfig
from xpyd.config.serve import Serve
from xpyd.economics.prices import PriceConfig


@dataclass(frozen=True)
class Claims(Serve):
    """Runs in the calling process, which starts one experiment after the other; each takes the settings that it has."""

    prices: PriceConfig = field(kw_only=True)
    claims: ClaimsConfig = field(default_factory=ClaimsConfig, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.placement.num_colocated:
            raise ValueError(
                f"placement.num_colocated={self.placement.num_colocated}: claims are about xPyD, such as "
                "placement=1p1d; what needs colocated ranks places them itself"
            )
        if self.num_blocks != 1:
            raise ValueError(f"num_blocks={self.num_blocks}: each claim's experiment counts its own; leave it out")

    @property
    def world_size(self) -> int:
        return 0

    @property
    def planned_blocks(self) -> int:
        return 0
