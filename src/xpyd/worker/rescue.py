"""The client's half of fault handling: who is lost, what becomes of their requests, which take too long.

The policy is ``faults.policy``; a pool without an instance left ends the block whatever it says. A request is failed
or routed anew only when every rank that had it, and is not lost, has said that nothing of it is left there: no stale
token or transfer of an earlier attempt can then meet a later one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from xpyd.dispatch import Way
from xpyd.faults import FaultConfig, Loss, Watch
from xpyd.placement import CLIENT_RANK, Instance, Placement, Role
from xpyd.records import LossRow
from xpyd.request import Request
from xpyd.worker.desk import Desk
from xpyd.worker.messages import Beat, Cancel, Cancelled, Gone

TIMEOUT_LOOKS_S = 0.05


@dataclass(slots=True)
class Undoing:
    """A flight that is being cancelled: why, who has still to say that nothing is left, and what they said so far."""

    reason: str
    retry: bool
    waiting: set[int]
    stages: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Flight:
    """A request that was sent and has not ended: where it went and what came back."""

    request: Request
    prompt: bytes
    way: Way
    sent_s: float
    indices: set[int] = field(default_factory=set)  # of the tokens that came, in any attempt
    attempt: int = 0
    num_seen: int = 0  # tokens of this attempt; of a retried request the first were here before
    undoing: Undoing | None = None

    @property
    def ranks(self) -> set[int]:
        return {self.way.prefill_rank, self.way.decode_rank}


class Rescue:
    """Made once per block. ``lost``: the ranks that earlier blocks have lost; it grows."""

    def __init__(self, desk: Desk, placement: Placement, config: FaultConfig, lost: dict[int, str]) -> None:
        self._desk = desk
        self._placement = placement
        self._config = config
        self.lost = lost
        self.verdict = self._empty_pool()  # why the block ends early
        self._workers = [rank for rank in range(len(placement.roles)) if rank not in {CLIENT_RANK, *lost}]
        self._watch = Watch(self._workers, config, time.monotonic())
        self._beat_due_s = 0.0
        self._look_due_s = 0.0

    def pool(self, *roles: Role) -> tuple[int, ...]:
        """The leaders of the instances of these roles that have all their ranks."""
        whole = (i for i in self._placement.instances if i.role in roles and not self.lost.keys() & set(i.ranks))
        return tuple(instance.leader for instance in whole)

    def _empty_pool(self) -> str:
        """Which pool has lost its last instance, in words; empty where none has."""
        for role in dict.fromkeys(instance.role for instance in self._placement.instances):
            if not self.pool(role):
                lost = [why for rank, why in self.lost.items() if self._placement.roles[rank] is role]
                return f"{'; '.join(lost)}, and no {role} instance is left"
        return ""

    def heard(self, rank: int) -> bool:
        """Take note of a message; False from a lost rank, whose messages count for nothing."""
        self._watch.heard(rank, time.monotonic())
        return rank not in self.lost

    def suspect(self, rank: int, reason: str) -> None:
        self._watch.suspect(rank, reason, time.monotonic())

    def tend(self, flights: dict[int, Flight]) -> list[Flight]:
        """Beat, look who is lost and what takes too long; returns the flights with which nobody is busy any more."""
        now_s = time.monotonic()
        if now_s >= self._beat_due_s:
            self._beat_due_s = now_s + self._config.beat_interval_s
            self._desk.mailbox.send_all(self._present(), Beat())
            for loss in self._watch.look(now_s, self._desk.mailbox.ended):
                self._lose(loss, flights)
        if self._config.request_timeout_s is not None and now_s >= self._look_due_s:
            self._look_due_s = now_s + TIMEOUT_LOOKS_S
            self._cancel_late(flights.values(), now_s, self._config.request_timeout_s)
        return [flight for flight in flights.values() if flight.undoing is not None and not flight.undoing.waiting]

    def fail(self, flight: Flight, reason: str) -> None:
        """A worker cannot serve it: the other ranks drop it too."""
        self._cancel(flight, reason, retry=False)

    def cancelled(self, flight: Flight, source: int, message: Cancelled) -> None:
        if flight.undoing is not None and message.attempt == flight.attempt:
            flight.undoing.waiting.discard(source)
            flight.undoing.stages.append(f"at {self.name(source)}: {message.stage}")

    def name(self, rank: int) -> str:
        return f"rank {rank} ({self._placement.roles[rank]} on {self._placement.nodes[rank]})"

    def _present(self) -> list[int]:
        return [rank for rank in self._workers if rank not in self.lost]

    def _lose(self, loss: Loss, flights: dict[int, Flight]) -> None:
        """Tell everybody, cancel what was on the rank's instance, and let the policy decide on the rest."""
        instance = self._placement.instance_of(loss.rank)
        self._desk.mailbox.send_all(self._present(), Gone(list(instance.ranks)))  # a stopped one may come back to it
        what = f"{self.name(loss.rank)} is lost: {loss.reason}"
        affected = [flight for flight in flights.values() if flight.ranks & set(instance.ranks)]
        for rank in instance.ranks:
            self.lost.setdefault(rank, what)
        self._desk.mailbox.give_up(instance.ranks)
        self._write(loss, instance, len(affected))
        for flight in flights.values():
            if flight.undoing is not None:
                flight.undoing.waiting -= set(instance.ranks)
        if not self._config.goes_on:
            self.verdict = self.verdict or f"{what} (faults.policy=end)"
        self.verdict = self.verdict or self._empty_pool()
        for flight in affected if not self.verdict else []:
            self._cancel(flight, what, self._may_retry(flight))

    def _write(self, loss: Loss, instance: Instance, num_requests: int) -> None:
        self._desk.rows.write(
            LossRow(
                block=self._desk.block,
                rank=loss.rank,
                role=instance.role.value,
                node=self._placement.nodes[loss.rank],
                t_ns=self._desk.clock.now_ns(),
                silent_s=loss.silent_s,
                num_requests=num_requests,
                reason=loss.reason,
            )
        )
        self._desk.rows.flush()

    def _may_retry(self, flight: Flight) -> bool:
        return not self.verdict and flight.attempt < (self._config.max_retries or 0)

    def _cancel_late(self, flights: Iterable[Flight], now_s: float, limit_s: float) -> None:
        for flight in flights:
            if flight.undoing is None and now_s - flight.sent_s > limit_s:
                self._cancel(flight, f"not done {limit_s:g} s after it was sent (faults.request_timeout_s)", False)

    def _cancel(self, flight: Flight, reason: str, retry: bool) -> None:
        if flight.undoing is None:
            waiting = flight.ranks - self.lost.keys()
            flight.undoing = Undoing(reason, retry, waiting)
            self._desk.mailbox.send_all(waiting, Cancel(flight.request.request_id, flight.attempt))
