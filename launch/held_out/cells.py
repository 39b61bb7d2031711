"""The cells that are measured, and what every step of it is told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

PRESET = "+preset=held_out"
MBIT_PER_GBIT = 1000


@dataclass(frozen=True)
class Cell:
    """One frozen prediction and one real comparison. Lengths in tokens, link in Gb/s (bits), rate of arrivals."""

    placement: str
    link_gbps: float
    input_len: int
    output_len: int
    rate_rps: float

    @property
    def name(self) -> str:
        """The end of a run folder's name: ``1p1d-2.5-48-6-200``."""
        axes = (self.link_gbps, self.input_len, self.output_len, self.rate_rps)
        return "-".join((self.placement, *(f"{value:g}" for value in axes)))

    @property
    def num_nodes(self) -> int:
        """One for each worker of ``xPyD``; the client is on the first."""
        prefill, decode = self.placement.removesuffix("d").split("p")
        return int(prefill) + int(decode)

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
            "simulate.scatter=true",
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
class Grid:
    """Every combination is a cell. Raises ValueError where the calibration would see a link of the cells."""

    placements: tuple[str, ...]
    links_gbps: tuple[float, ...]
    input_lens: tuple[int, ...]
    output_lens: tuple[int, ...]
    rates_rps: tuple[float, ...]
    calibration_gbps: float

    def __post_init__(self) -> None:
        if self.calibration_gbps in self.links_gbps:
            raise ValueError(
                f"--calibration-gbps {self.calibration_gbps:g} is one of --links: the calibration would see a cell's "
                "link, and that cell would not be held out; choose another"
            )

    @property
    def cells(self) -> list[Cell]:
        axes = (self.placements, sorted(self.links_gbps), self.input_lens, self.output_lens, self.rates_rps)
        return [Cell(*point) for point in product(*axes)]

    def calibration_overrides(self, num_rounds: int, pool: Sequence[Path]) -> list[str]:
        """Of ``experiments.calibrate``; ``pool``: earlier calibrations that the fit rests on too."""
        return [
            PRESET,
            f"fabric.rate_gbps={self.calibration_gbps}",
            f"num_rounds={num_rounds}",
            f"pool=[{','.join(map(str, pool))}]",
            "run.report=false",
        ]


def tc_rate(link_gbps: float) -> str:
    """A link's rate as the virtual cluster takes it: ``2500mbit``."""
    return f"{round(link_gbps * MBIT_PER_GBIT)}mbit"
