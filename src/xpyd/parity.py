"""Equal resources: what the arms of a comparison must share. Pure.

Arms may differ in placement (which rank does what), in how a step's budget is filled, and in transfer. Anything else
would be counted as a cost or a gain of splitting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.placement import PlacementConfig
from xpyd.scheduler.config import SchedulerConfig


@dataclass(frozen=True)
class Arm:
    """The resources of one arm."""

    placement: PlacementConfig
    model: ModelSpec
    scheduler: SchedulerConfig
    sampling: SamplingConfig
    speculation: SpeculationConfig
    codec: str | None  # of the KV it decodes from; None: it moves none

    @property
    def shared(self) -> dict[str, Any]:
        """Key -> value of all that must be equal."""
        return {
            "placement: worker ranks": self.placement.num_workers,
            "placement.pin_cores": self.placement.pin_cores,
            "model": self.model,
            "scheduler.block_size": self.scheduler.block_size,
            "scheduler.num_kv_blocks": self.scheduler.num_kv_blocks,
            "scheduler.prefix_cache": self.scheduler.prefix_cache,
            "scheduler.eviction": self.scheduler.eviction,
            "scheduler.num_host_blocks": self.scheduler.num_host_blocks,
            "scheduler.num_remote_blocks": self.scheduler.num_remote_blocks,
            "scheduler.fetch": self.scheduler.fetch,
            "sampling": self.sampling,
            "speculation": self.speculation,
        }


def check_parity(arms: Mapping[str, Arm]) -> None:
    """Raises ValueError where two arms differ in what they must share; names arms, key and both values.

    A lossy codec is let through: it belongs to the transfer, and the tables hold its tokens against the exact ones.
    """
    (first, reference), *others = arms.items()
    for name, arm in others:
        for key, value in reference.shared.items():
            if arm.shared[key] != value:
                raise ValueError(
                    f"the arms are unequal: {key} is {value!r} in arm {first}, {arm.shared[key]!r} in arm {name}; give "
                    "both the same: only placement, policy, batch limits and transfer may differ"
                )
    moving = {name: arm.codec for name, arm in arms.items() if arm.codec is not None}
    if len(set(moving.values())) > 1:
        listed = ", ".join(f"{codec} in arm {name}" for name, codec in moving.items())
        raise ValueError(f"the arms are unequal: transfer.codec is {listed}; give all arms that move KV the same")
