"""The cells that are measured, and what every step of it is told. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

PRESET = "+preset=held_out"
MBIT_PER_GBIT = 1000


@dataclass(frozen=True)
class Grid:
    """Every combination is a cell of the map, and one real comparison. Lengths in tokens, links in Gb/s (bits)."""

    links_gbps: tuple[float, ...]
    input_lens: tuple[int, ...]
    output_lens: tuple[int, ...]
    rates_rps: tuple[float, ...]
    num_pairs: int

    @property
    def cells(self) -> list[tuple[float, int, int, float]]:
        """(link, input, output, rate) of every cell, by link, as a link is shaped for one job after the other."""
        return list(product(sorted(self.links_gbps), self.input_lens, self.output_lens, self.rates_rps))

    def map_overrides(self, calibration: Path) -> list[str]:
        """Of ``experiments.break_even``."""
        axes = {
            "links_gbps": self.links_gbps,
            "input_lens": self.input_lens,
            "output_lens": self.output_lens,
            "rates_rps": self.rates_rps,
        }
        lists = [f"break_even.{name}=[{','.join(map(str, values))}]" for name, values in axes.items()]
        pairs = f"num_pairs={self.num_pairs}"
        return [PRESET, *lists, pairs, "break_even.naive=true", f"simulate.calibration={calibration}"]


def cell_overrides(cell: tuple[float, int, int, float], num_pairs: int) -> list[str]:
    """Of ``experiments.compare``: one cell, against the configured rival, which is what the map knows."""
    link_gbps, input_len, output_len, rate_rps = cell
    return [
        PRESET,
        f"fabric.rate_gbps={link_gbps}",
        f"workload.input_len={input_len}",
        f"workload.output_len={output_len}",
        f"workload.arrival.rate_rps={rate_rps}",
        f"num_pairs={num_pairs}",
        "null_control=false",
        "rival=configured",
        "run.report=false",
    ]


def tc_rate(link_gbps: float) -> str:
    """A link's rate as the virtual cluster takes it: ``2500mbit``."""
    return f"{round(link_gbps * MBIT_PER_GBIT)}mbit"


def cell_name(cell: Sequence[float]) -> str:
    """The end of a run folder's name: ``2.5-48-6-200``."""
    return "-".join(f"{value:g}" for value in cell)
