"""What one set of ranks is told to measure, and the samples that it writes: JSON between the front and the ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Order:
    """One path with one number of pairs. ``rate_gbps`` is None where nothing shapes the link."""

    path: str
    host: str  # the destinations' address
    num_sides: int  # sources, and as many destinations
    layers_bytes: int  # of one request of whole layers
    tls: tuple[str, ...]
    device: str | None
    ucx: Mapping[str, str]  # UCX options without UCX_, from conf/fabric
    message_bytes: int  # likewise
    seconds: float  # how long to repeat
    min_repeats: int  # made also when the time is over
    quick: bool
    carriers: tuple[str, ...]  # empty: all
    samples: str  # the file to write

    @property
    def shared_memory(self) -> bool:
        return self.device is None

    @property
    def pairs(self) -> str:
        return f"{self.num_sides}x{self.num_sides}"

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Order:
        values = json.loads(path.read_text())
        return cls(**{**values, "tls": tuple(values["tls"]), "carriers": tuple(values["carriers"])})


@dataclass(frozen=True)
class Sample:
    """One timed transfer. ``cpu_s`` sums user and system time of all ranks; None where it is not ours to count."""

    path: str
    pairs: str
    case: str
    carrier: str
    repeat: int
    num_bytes: int
    num_pieces: int
    seconds: float
    cpu_s: float | None
    small_s: float | None  # one small message; measured once per carrier and repeat, with its first case

    @property
    def bytes_per_s(self) -> float:
        return self.num_bytes / self.seconds


@dataclass(frozen=True)
class Missing:
    """A carrier that was left out, and why."""

    path: str
    pairs: str
    carrier: str
    reason: str


def read_samples(path: Path) -> Iterator[Sample | Missing]:
    """What the ranks wrote, also before they have ended."""
    for line in path.read_text().splitlines() if path.exists() else []:
        values = json.loads(line)
        yield Missing(**values) if "reason" in values else Sample(**values)
