"""What a job of the soak is to do, and what it found: plain data between the driver and the ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Fault = Literal["kill", "stop", "cut", "abort", "exhaust"]
OUTCOMES = "outcomes.json"


@dataclass(frozen=True)
class Order:
    """One job. ``victims[b]``: the ranks that fail in block b, each in mid-transfer; none for abort and exhaust.

    ``late``: not in mid-transfer, but when the block is over for them, and the client has not yet heard so.
    """

    fault: Fault
    num_prefill: int
    num_decode: int
    victims: tuple[tuple[int, ...], ...]
    transport: str = "ucx"
    mode: Literal["whole", "layerwise"] = "layerwise"
    direction: Literal["pull", "push"] = "pull"
    policy: Literal["end", "go_on", "retry"] = "retry"
    detect_s: float = 1.0
    beat_interval_s: float = 0.2
    num_kv_blocks: int = 64
    num_requests: int = 24
    late: bool = False
    seed: int = 0

    @property
    def num_ranks(self) -> int:
        return 1 + self.num_prefill + self.num_decode

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        fields = json.loads(text)
        return cls(**{**fields, "victims": tuple(tuple(block) for block in fields["victims"])})


@dataclass(frozen=True)
class Strike:
    """A fault that was dealt. ``noticed_s``: until the client declared the rank lost, None where it did not."""

    victim: int
    noticed_s: float | None
    reason: str


@dataclass(frozen=True)
class Outcome:
    """One block, as its client saw it. A reason counts as named with rank, peer and stage in it."""

    block: int
    strikes: tuple[Strike, ...]
    bystanders: tuple[str, ...]  # ranks declared lost that nobody had harmed, and why
    num_finished: int
    num_failed: int
    num_retried: int
    num_unexplained: int  # neither finished nor failed with a reason
    num_unnamed: int  # failed or retried for a reason that does not name rank, peer and stage
    num_moving: int  # failed or retried of which a worker says that their KV was moving

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Outcome:
        strikes = tuple(Strike(**strike) for strike in fields["strikes"])
        return cls(**{**fields, "strikes": strikes, "bystanders": tuple(fields["bystanders"])})


@dataclass(frozen=True)
class RankReport:
    """What a rank that was left at the end of its job says of its own pool."""

    rank: int
    num_checked: int  # blocks of layers compared with their pattern
    num_quarantined: int
    num_waits: int  # offers that found no free blocks


def fault_file(folder: Path, rank: int) -> Path:
    """When (``perf_counter_ns``) the rank failed, and its process; written by itself, or by who cut its link."""
    return folder / f"fault.{rank}"


def ready_file(folder: Path, rank: int) -> Path:
    """The rank is in mid-transfer: its link may be cut."""
    return folder / f"ready.{rank}"


def lost_file(folder: Path, rank: int) -> Path:
    """The client has declared the rank lost."""
    return folder / f"lost.{rank}"


def over_file(folder: Path) -> Path:
    """The ranks that are left have ended, or are about to."""
    return folder / "over"


def error_file(folder: Path, rank: int) -> Path:
    """What made a rank fail that was not to."""
    return folder / f"error.{rank}"


def write_outcomes(folder: Path, outcomes: list[Outcome]) -> None:
    (folder / OUTCOMES).write_text(json.dumps([asdict(outcome) for outcome in outcomes]))


def read_outcomes(folder: Path) -> list[Outcome]:
    path = folder / OUTCOMES
    return [Outcome.from_fields(each) for each in json.loads(path.read_text())] if path.exists() else []


def read_reports(folder: Path) -> list[RankReport]:
    return [RankReport(**json.loads(path.read_text())) for path in sorted(folder.glob("rank.*.json"))]
