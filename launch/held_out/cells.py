"""The cells that are measured, and what every step of it is told."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from xpyd.calibration_points import FILE

PRESET = "+preset=held_out"
PLACEMENT = re.compile(r"[1-9]\d*p[1-9]\d*d")
MBIT_PER_GBIT = 1000


@dataclass(frozen=True)
class Cell:
    """One frozen prediction and one real comparison. Lengths in tokens, link in Gb/s (bits), rate of arrivals."""

    placement: str
    link_gbps: float
    input_len: int
    output_len: int
    rate_rps: float

    @classmethod
    def parse(cls, name: str) -> Cell:
        """``1p1d-0.2-256-24-3``: placement, link, tokens in, tokens out, rate. Raises ValueError."""
        try:
            placement, link, input_len, output_len, rate = name.split("-")
            if not PLACEMENT.fullmatch(placement):
                raise ValueError(placement)
            return cls(placement, float(link), int(input_len), int(output_len), float(rate))
        except ValueError:
            raise ValueError(
                f"cell {name!r} is not xPyD-GBPS-IN-OUT-RATE; give placement, link, tokens in and out, and requests a "
                "second, such as 1p1d-0.2-256-24-3"
            ) from None

    @property
    def name(self) -> str:
        """The end of a run folder's name: ``1p1d-2.5-48-6-200``."""
        axes = (self.link_gbps, self.input_len, self.output_len, self.rate_rps)
        return "-".join((self.placement, *(f"{value:g}" for value in axes)))

    @property
    def num_nodes(self) -> int:
        """One for each worker of ``xPyD``; the client is on the first."""
        return sum(self._counts)

    @property
    def calibrated_on(self) -> str:
        """The placement that is calibrated for this one: as many workers, in another ratio if there is one.

        As many, since what workers take from each other (cores, a network) is there in a calibration too.
        """
        num_prefill, num_decode = self._counts
        if num_prefill == num_decode > 1:
            return f"{num_prefill - 1}p{num_decode + 1}d"
        return f"{num_decode}p{num_prefill}d"

    @property
    def _counts(self) -> tuple[int, int]:
        """Prefill and decode workers."""
        prefill, decode = self.placement.removesuffix("d").split("p")
        return int(prefill), int(decode)

    def map_overrides(self, calibration: Path, num_pairs: int) -> list[str]:
        """Of ``experiments.break_even``."""
        return [
            PRESET,
            f"placement={self.placement}",
            f"break_even.links_gbps=[{self.link_gbps}]",
            f"break_even.input_lens=[{self.input_len}]",
            f"break_even.output_lens=[{self.output_len}]",
            f"break_even.rates_rps=[{self.rate_rps}]",
            f"num_pairs={num_pairs}",
            "break_even.naive=true",
            f"simulate.calibration={calibration}",
        ]

    def run_overrides(self, num_pairs: int) -> list[str]:
        """Of ``experiments.compare``: the cell, against the configured rival, which is what the map knows."""
        return [
            PRESET,
            f"placement={self.placement}",
            f"fabric.rate_gbps={self.link_gbps}",
            f"workload.input_len={self.input_len}",
            f"workload.output_len={self.output_len}",
            f"workload.arrival.rate_rps={self.rate_rps}",
            f"num_pairs={num_pairs}",
            "null_control=false",
            "rival=configured",
            "run.report=false",
        ]


@dataclass(frozen=True)
class Plan:
    """Cells in the order of measuring. Raises ValueError where the calibration would see a link of theirs."""

    cells: tuple[Cell, ...]
    calibration_gbps: float

    def __post_init__(self) -> None:
        for cell in self.cells:
            if cell.link_gbps == self.calibration_gbps:
                raise ValueError(
                    f"--calibration-gbps {self.calibration_gbps:g} is the link of {cell.name}: the calibration would "
                    "see it, and that cell would not be held out; choose another"
                )

    def calibration_overrides(self, placement: str, num_rounds: int, pool: Sequence[Path]) -> list[str]:
        """Of ``experiments.calibrate``; ``pool``: earlier calibrations that the fit rests on too."""
        return [
            PRESET,
            f"placement={placement}",
            f"fabric.rate_gbps={self.calibration_gbps}",
            f"num_rounds={num_rounds}",
            f"pool=[{','.join(map(str, pool))}]",
            "run.report=false",
        ]


def placement_of(calibration: Path) -> str:
    """Of a run folder of ``experiments.calibrate``, as overrides name it. Raises ValueError where it is none."""
    try:
        return str(json.loads((calibration / FILE).read_text())["conditions"]["placement"]).lower()
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"--calibrated {calibration}: no calibration ({error}); give run folders of python -m experiments.calibrate"
        ) from None


def tc_rate(link_gbps: float) -> str:
    """A link's rate as the virtual cluster takes it: ``2500mbit``."""
    return f"{round(link_gbps * MBIT_PER_GBIT)}mbit"
