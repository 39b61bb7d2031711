"""From samples to shares of the limits: ratios inside one repeat, then their median. Pure.

A machine that slows down for a second slows all carriers of a repeat, and the ratio stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.transfer.cases import LAYERS
from benchmarks.transfer.order import Sample
from xpyd.units import GIGA

BULK = f"{LAYERS.name} x1"
LEVEL = 0.98  # equal, within what repeats differ by


@dataclass(frozen=True)
class Row:
    """One carrier on one case. Shares are medians of ratios; None: no limit was measured on the same thing."""

    path: str
    pairs: str
    case: str
    carrier: str
    num_repeats: int
    gbytes_s: float
    pattern_share: float | None  # of the best socket or ucx_perftest on this case
    bulk_share: float | None  # of the best socket or ucx_perftest on whole layers
    cpu_s_per_gb: float | None
    descriptors_per_s: float
    small_s: float | None


def is_limit(carrier: str) -> bool:
    """What no transport is expected to beat."""
    return carrier.startswith(("socket", "ucx_perftest"))


class Samples:
    """All samples of a benchmark, by what was measured."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._rates: dict[tuple[str, str, str], dict[str, dict[int, Sample]]] = {}
        for sample in samples:
            carriers = self._rates.setdefault((sample.path, sample.pairs, sample.case), {})
            carriers.setdefault(sample.carrier, {})[sample.repeat] = sample

    def rows(self) -> list[Row]:
        """In the order of measuring paths, and of cases and carriers by name of first sight."""
        return [
            self._row(path, pairs, case, carrier)
            for (path, pairs, case), carriers in self._rates.items()
            for carrier in sorted(carriers, key=lambda name: (not is_limit(name), name))
        ]

    def ratio(self, path: str, pairs: str, case: str, carrier: str, other: str, other_case: str = "") -> float | None:
        """The median over repeats of one carrier's rate over another's; None where either was not measured."""
        mine = self._rates.get((path, pairs, case), {}).get(carrier, {})
        theirs = self._rates.get((path, pairs, other_case or case), {}).get(other, {})
        common = mine.keys() & theirs.keys()
        return median(mine[i].bytes_per_s / theirs[i].bytes_per_s for i in common) if common else None

    def best_limit(self, path: str, pairs: str, case: str) -> str | None:
        """The limit carrier with the highest median rate on a case."""
        carriers = self._rates.get((path, pairs, case), {})
        limits = {name: _rate(found) for name, found in carriers.items() if is_limit(name)}
        return max(limits, key=lambda name: limits[name]) if limits else None

    def _row(self, path: str, pairs: str, case: str, carrier: str) -> Row:
        found = self._rates[path, pairs, case][carrier]
        own, bulk = self.best_limit(path, pairs, case), self.best_limit(path, pairs, BULK)
        cpu = [s.cpu_s / s.num_bytes * GIGA for s in found.values() if s.cpu_s is not None]
        small = [
            s.small_s
            for (p, sides, _), carriers in self._rates.items()
            if (p, sides) == (path, pairs)
            for s in carriers.get(carrier, {}).values()
            if s.small_s is not None
        ]
        return Row(
            path=path,
            pairs=pairs,
            case=case,
            carrier=carrier,
            num_repeats=len(found),
            gbytes_s=_rate(found) / GIGA,
            pattern_share=self.ratio(path, pairs, case, carrier, own) if own else None,
            bulk_share=self.ratio(path, pairs, case, carrier, bulk, BULK) if bulk else None,
            cpu_s_per_gb=median(cpu) if cpu else None,
            descriptors_per_s=median(s.num_pieces / s.seconds for s in found.values()),
            small_s=median(small) if small else None,
        )


def _rate(found: dict[int, Sample]) -> float:
    return median(sample.bytes_per_s for sample in found.values())


@dataclass(frozen=True)
class Target:
    """What our default transport shall reach, and what it did; ``found`` is None where it was not measured."""

    text: str
    least: float
    found: float | None

    @property
    def met(self) -> bool | None:
        return None if self.found is None else self.found >= self.least


def targets(samples: Samples, path: str, shaped: bool, carrier: str = "ucx") -> list[Target]:
    """The targets of one path, on one pair of ranks. A full wire leaves no room to be ahead: level is enough there."""
    rows = {(row.case, row.carrier): row for row in samples.rows() if (row.path, row.pairs) == (path, "1x1")}
    scattered = next((case for case, _ in rows if "scattered x1" in case), "")
    bulk, small = rows.get((BULK, carrier)), rows.get((scattered, carrier))
    found = [
        Target("whole layers, share of the limit", 0.97 if shaped else 0.90, bulk.pattern_share if bulk else None),
        Target("64 KiB scattered, share of bulk", 0.80, small.bulk_share if small else None),
    ]
    for other in dict.fromkeys(name for _, name in rows if not is_limit(name) and name != carrier):
        ratios = [samples.ratio(path, "1x1", case, carrier, other) for case in dict.fromkeys(case for case, _ in rows)]
        least = LEVEL if shaped else 1.0
        found.append(Target(f"over {other}, worst pattern", least, min((r for r in ratios if r), default=None)))
    return found
