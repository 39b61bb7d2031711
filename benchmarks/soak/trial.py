"""What a job of the soak is to do, and what it found: plain data between the driver and the ranks."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Fault = Literal["kill", "stop", "cut", "abort", "exhaust"]


@dataclass(frozen=True)
class Order:
    """One job. ``victims[b]`` is the rank that fails in block b (none: -1), in mid-transfer."""

    fault: Fault
    num_prefill: int
    num_decode: int
    victims: tuple[int, ...]
    transport: str = "ucx"
    mode: Literal["whole", "layerwise"] = "layerwise"
    direction: Literal["pull", "push"] = "pull"
    policy: Literal["end", "go_on", "retry"] = "retry"
    detect_s: float = 2.0
    beat_interval_s: float = 0.2
    num_kv_blocks: int = 64
    num_requests: int = 12
    seed: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        fields = json.loads(text)
        return cls(**{**fields, "victims": tuple(fields["victims"])})


@dataclass(frozen=True)
class Outcome:
    """One block, as its client saw it. ``detected_s``: from the fault to the client's finding, -1 where none was due.

    ``aborted_moving``: failed requests that a worker says were in mid-transfer.
    """

    block: int
    victim: int
    detected_s: float
    reason: str
    num_finished: int
    num_failed: int
    num_retried: int
    num_unexplained: int  # neither finished nor failed with a reason
    aborted_moving: int


def write_outcomes(folder: Path, outcomes: list[Outcome]) -> None:
    (folder / "outcomes.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes]))


def read_outcomes(folder: Path) -> list[Outcome]:
    path = folder / "outcomes.json"
    return [Outcome(**each) for each in json.loads(path.read_text())] if path.exists() else []
