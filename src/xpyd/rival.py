"""The colocated rival's own scheduler settings: configured, or tuned by ``experiments.tune_colocated``.

A tuned preset is good for the model, workload, limits and ranks that it was made for; it carries their fingerprint,
and a comparison of anything else refuses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from xpyd.model.spec import ModelSpec
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.placement import PlacementConfig
from xpyd.scheduler.config import SchedulerConfig
from xpyd.workload.config import WorkloadConfig
from xpyd.workload.slo import SloConfig

EXPERIMENT = "tune_colocated"
GROUP, PRESET = "rival", "tuned"
NOT_IN_PRINT = ("seed", "num_requests")  # another draw of the same load, and how much of it


@dataclass(frozen=True)
class RivalConfig:
    """Which colocated arms a comparison plays.

    ``auto``: the newest tuned preset under ``run.root`` that was made for this comparison, where there is one.
    ``tuned``: ``scheduler`` as a second colocated arm. ``configured``: the arm with the common scheduler alone.
    ``made_for``: what the preset was tuned on, by part; empty: unknown, and not checked.
    """

    use: Literal["auto", "configured", "tuned"] = "configured"
    scheduler: SchedulerConfig | None = None
    made_for: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.use == "tuned") != (self.scheduler is not None):
            given = "none" if self.scheduler is None else "one"
            raise ValueError(
                f"rival.use={self.use} with {given} in rival.scheduler: use=tuned takes a scheduler, the others do "
                f"not; choose a preset of python -m experiments.{EXPERIMENT}, or rival=configured"
            )

    def check(self, wanted: Mapping[str, str]) -> None:
        """Raises ValueError where the preset was made for something else than ``wanted``, a fingerprint."""
        if not self.made_for:
            return
        wrong = [
            f"{part} {self.made_for.get(part)!r}, here {value!r}"
            for part, value in wanted.items()
            if self.made_for.get(part) != value
        ]
        if wrong:
            raise ValueError(
                f"rival.made_for: the tuned rival was made for {'; '.join(wrong)}; tune it for this comparison "
                f"(python -m experiments.{EXPERIMENT} with the same options), or choose rival=configured"
            )


def fingerprint(
    model: ModelSpec,
    placement: PlacementConfig,
    scheduler: SchedulerConfig,
    workload: WorkloadConfig,
    slo: SloConfig,
    speculation: SpeculationConfig,
) -> dict[str, str]:
    """What a colocated scheduler is tuned on, part by part; readable where that is short, else with a digest."""
    load = {key: value for key, value in asdict(workload).items() if key not in NOT_IN_PRINT}
    return {
        "model": f"{model.name} {_digest(asdict(model))}",
        "ranks": placement.colocated().name,
        "pool": f"{scheduler.num_kv_blocks} x {scheduler.block_size} tokens",
        "workload": _digest(load),
        "slo": f"ttft {slo.ttft_s:g} s, itl {slo.itl_s:g} s",
        "speculation": f"{speculation.draft} {_digest(asdict(speculation))}" if speculation.on else "off",
    }


def find_rival(root: Path, wanted: Mapping[str, str]) -> tuple[Path, RivalConfig] | None:
    """The newest preset of a finished tuning run under ``root`` that was made for ``wanted``."""
    for path in sorted(root.glob(f"{EXPERIMENT}/*/{GROUP}/{PRESET}.yaml"), key=_age, reverse=True):
        content = yaml.safe_load(path.read_text())
        if (path.parents[1] / "DONE").exists() and content["made_for"] == wanted:
            scheduler = SchedulerConfig(**content["scheduler"])
            return path, RivalConfig("tuned", scheduler, content["made_for"])
    return None


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, str(path)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]
