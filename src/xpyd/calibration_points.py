"""What a calibration was fitted to, kept in its run folder, so that a later one can be fitted to both.

A machine that others use too is not equally fast at all times: a calibration of half a minute knows one of its speeds,
one that is spread over the day knows their range.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

from xpyd.economics.cost import ComputePoint, LinkPoint
from xpyd.economics.delays import DelayPoint
from xpyd.economics.moving import BesidePoint

FILE = "points.json"
# Of the conditions of a calibration, what calibrations that are fitted together must agree in.
SHARED = ("model", "dtype", "placement", "block_size", "transport", "fabric", "rate_gbps", "codec")


@dataclass
class Points:
    """Timed steps by round, alone and as workers of each role played them; transfers, KV beside steps, delays."""

    rounds: list[list[ComputePoint]] = field(default_factory=list)
    played: list[dict[str, list[ComputePoint]]] = field(default_factory=list)  # by block and role
    transfers: list[LinkPoint] = field(default_factory=list)
    beside: list[BesidePoint] = field(default_factory=list)
    delays: list[DelayPoint] = field(default_factory=list)

    @property
    def steps(self) -> list[ComputePoint]:
        return [point for own in self.rounds for point in own]

    def content(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """As it is written, with what the points hold for."""
        return {"conditions": {key: conditions[key] for key in SHARED}, **asdict(self)}


def pooled(calibrations: Sequence[Points]) -> Points:
    """The points of all of them, as if they were one."""
    return Points(*(list(chain(*(getattr(each, part.name) for each in calibrations))) for part in fields(Points)))


def read_points(folders: Sequence[str], conditions: Mapping[str, Any]) -> list[Points]:
    """The points of each earlier calibration run. Raises ValueError where one has none, or is of something else."""
    found = []
    for folder in folders:
        path = Path(folder) / FILE
        try:
            content = json.loads(path.read_text())
        except OSError as error:
            raise ValueError(
                f"pool: {path} cannot be read ({error.strerror}); give run folders of python -m experiments.calibrate"
            ) from None
        for key, value in content["conditions"].items():
            if value != conditions[key]:
                raise ValueError(
                    f"pool: {folder} was made with {key}={value}, here {conditions[key]}; leave it out, or calibrate "
                    "with the same"
                )
        found.append(
            Points(
                [_steps(own) for own in content["rounds"]],
                [{role: _steps(own) for role, own in each.items()} for each in content["played"]],
                [LinkPoint(**point) for point in content["transfers"]],
                [BesidePoint(**point) for point in content["beside"]],
                [DelayPoint(**point) for point in content.get("delays", [])],  # none in files of before version 5
            )
        )
    return found


def _steps(content: Sequence[Mapping[str, Any]]) -> list[ComputePoint]:
    return [ComputePoint(**point) for point in content]
