"""A finding: what was looked at, whether it is good enough, the facts, and what to do where it is not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

Value = TypeVar("Value")


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


class Topic(StrEnum):
    """The groups of the table, in its order."""

    PLACEMENT = "placement"
    MPI = "MPI"
    UCX = "UCX"
    PAIRS = "pairs"
    CLOCK = "clock"
    MEMORY = "memory"
    DEVICES = "cores and devices"
    SOFTWARE = "software"
    DISK = "disk"


@dataclass(frozen=True)
class Finding:
    """``remedy`` is empty where there is nothing to do."""

    topic: Topic
    check: str
    level: Level
    found: str
    remedy: str = ""


def count(findings: Iterable[Finding], level: Level) -> int:
    return sum(finding.level is level for finding in findings)


def failed(findings: Collection[Finding], strict: bool) -> bool:
    """Whether the cluster is not ready: an error, or under ``strict`` a warning."""
    return count(findings, Level.ERROR) > 0 or (strict and count(findings, Level.WARNING) > 0)


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """By topic, in the table's order; within a topic as they were found."""
    topics = list(Topic)
    return sorted(findings, key=lambda finding: topics.index(finding.topic))


def by_value(values: Mapping[str, Value]) -> dict[Value, list[str]]:
    """Each different value with the names that have it: facts that agree are said once."""
    found: dict[Value, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def told(values: Mapping[str, str]) -> str:
    """Each different text once, with the names it holds for where there are several texts."""
    groups = by_value(values)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in groups.items())
