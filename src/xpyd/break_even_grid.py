"""The cells of a break-even map, and when one counts as decided. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt, MinLen

Positive = Annotated[float, Gt(0)]
Tokens = Annotated[int, Gt(0)]
MAX_CELLS = 5000


@dataclass(frozen=True)
class BreakEvenConfig:
    """Every combination of the four lists is a cell; ``links_gbps`` in bits per second, ``rates_rps`` of arrivals.

    ``criterion``: a cell's class goes by win minus bill (ledger) or by end-to-end seconds (net). ``band``: the
    simulator's known relative error, within which a cell is undecided. ``naive``: also what simpler predictors say.
    """

    links_gbps: Annotated[tuple[Positive, ...], MinLen(1)]
    input_lens: Annotated[tuple[Tokens, ...], MinLen(1)]
    rates_rps: Annotated[tuple[Positive, ...], MinLen(1)]
    output_lens: Annotated[tuple[Annotated[int, Gt(1)], ...], MinLen(1)]  # with one token nothing is handed off
    criterion: Literal["ledger", "net"] = "ledger"
    band: Annotated[float, Ge(0), Lt(1)] = 0.25
    naive: bool = False

    def __post_init__(self) -> None:
        for name in ("links_gbps", "input_lens", "rates_rps", "output_lens"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)}: a value is there twice; give each once")
        if self.num_cells > MAX_CELLS:
            raise ValueError(f"{self.num_cells} cells, at most {MAX_CELLS} are played; give fewer values on an axis")

    @property
    def num_cells(self) -> int:
        return len(self.links_gbps) * len(self.input_lens) * len(self.rates_rps) * len(self.output_lens)

    def points(self) -> list[tuple[int, float, int, float]]:
        """(output_len, rate_rps, input_len, link_gbps) of every cell; the link, which changes one arm only, innermost.

        Sorted, so that the map fills from one corner.
        """
        loads = product(sorted(self.output_lens), sorted(self.rates_rps), sorted(self.input_lens))
        return [(*load, gbps) for load in loads for gbps in sorted(self.links_gbps)]
