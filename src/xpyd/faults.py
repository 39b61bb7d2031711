"""Faults: how soon a lost rank is noticed, and what becomes of the run. Pure: ranks are ints, time is the caller's.

A rank is lost when it was silent for ``detect_s`` (stopped, hung, its link down), when MPI says that its process has
ended, or when a peer cannot reach it over the KV transport and the client cannot clear it. See docs/faults.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

Policy = Literal["end", "go_on", "retry"]
MIN_BEATS = 4  # within detect_s: fewer, and one late beat would be a death
EXIT_RANKS_LOST = 4  # the exit code of a run that went on without some of its ranks
EXIT_REQUESTS_FAILED = 5  # of a run that is whole, but for requests that failed


@dataclass(frozen=True)
class FaultConfig:
    """``end``: a lost rank ends the run. ``go_on``: its requests fail. ``retry``: they are routed anew.

    Whoever is silent for ``detect_s`` is lost; every rank is heard of each ``beat_interval_s``. A request that takes
    longer than ``request_timeout_s`` is aborted (null: never). ``max_retries`` of one request, with ``retry`` alone.
    """

    policy: Policy = "end"
    detect_s: Annotated[float, Gt(0)] = 5.0
    beat_interval_s: Annotated[float, Gt(0)] = 0.5
    request_timeout_s: Annotated[float, Gt(0)] | None = None
    max_retries: Annotated[int, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if self.detect_s < MIN_BEATS * self.beat_interval_s:
            raise ValueError(
                f"detect_s={self.detect_s} is less than {MIN_BEATS} times beat_interval_s={self.beat_interval_s}: one "
                "late beat would count as a death; raise the former or lower the latter"
            )
        if self.policy == "retry" and self.max_retries is None:
            raise ValueError("policy=retry without max_retries; choose faults=retry, which sets both")
        if self.policy != "retry" and self.max_retries is not None:
            raise ValueError(
                f"max_retries={self.max_retries} with policy={self.policy}: it is read with policy=retry only; leave "
                "it out or choose faults=retry"
            )

    @property
    def goes_on(self) -> bool:
        return self.policy != "end"


@dataclass(frozen=True)
class Loss:
    """A rank that is lost, and why."""

    rank: int
    reason: str
    silent_s: float


class ClientLost(RuntimeError):
    """Nothing is heard of the client any more: the end of the run, which every worker finds at the same time."""


class RanksLost(RuntimeError):
    """The run went on to its end without some of its ranks; the message names them."""


class Watch:
    """Which ranks have been silent for too long. ``now_s`` may have any origin, but must not run backwards."""

    def __init__(self, ranks: Iterable[int], config: FaultConfig, now_s: float) -> None:
        self._config = config
        self._heard_s = dict.fromkeys(ranks, now_s)
        self._suspects: dict[int, tuple[str, float]] = {}  # why, and since when
        self._looked_s = now_s

    def heard(self, rank: int, now_s: float) -> None:
        if rank in self._heard_s:
            self._heard_s[rank] = now_s

    def suspect(self, rank: int, reason: str, now_s: float) -> None:
        """A peer cannot reach ``rank``; the first reason counts. It is lost when two beats are late, or at the limit.

        At the limit it may still be beating: then its link to that peer is what is lost, and the rank with it.
        """
        if rank in self._heard_s:
            self._suspects.setdefault(rank, (reason, now_s))

    def look(self, now_s: float, ended: Iterable[int] = ()) -> list[Loss]:
        """Ranks newly lost, each told once. ``ended``: those whose processes MPI reports as ended."""
        self._forgive(now_s - self._looked_s)
        self._looked_s = now_s
        found = [loss for rank in self._heard_s if (loss := self._judge(rank, now_s, rank in ended)) is not None]
        for loss in found:
            del self._heard_s[loss.rank]
        return found

    def _forgive(self, gap_s: float) -> None:
        """A watcher that did not run itself (a loaded core) heard nothing: that silence is not theirs."""
        held_up_s = gap_s - self._config.beat_interval_s
        if held_up_s > 0:
            self._heard_s = {rank: heard_s + held_up_s for rank, heard_s in self._heard_s.items()}
            self._suspects = {rank: (why, since_s + held_up_s) for rank, (why, since_s) in self._suspects.items()}

    def _judge(self, rank: int, now_s: float, ended: bool) -> Loss | None:
        silent_s = max(0.0, now_s - self._heard_s[rank])
        reason, since_s = self._suspects.get(rank, ("", now_s))
        if ended:
            return Loss(rank, "its process has ended", silent_s)
        if silent_s >= self._config.detect_s:
            return Loss(rank, f"nothing heard of it for {silent_s:.1f} s", silent_s)
        late = silent_s > 2 * self._config.beat_interval_s
        if reason and (late or now_s - since_s >= self._config.detect_s):
            return Loss(rank, reason, silent_s)
        return None
