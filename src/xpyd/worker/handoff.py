"""The two ends of a hand-off: what a prefill rank has to give, and what a decode rank is taking.

Pull: the source offers its block table; the destination takes an offer only when it has a seat in its batch, blocks
for the prompt and room for what runs to grow. Until then the KV waits in the source's pool. Push: the source asks for
blocks when the request arrives, and gets them as soon as any are free; it sends when it is ready, and what has landed
waits in the destination's pool for a seat. So a burst queues up in the prefill pool under pull, in the decode pool
under push (``StepRow.num_reserved_kv_blocks``). In both, source blocks are not reused before the release.

How pieces travel is the transport's matter: by messages the destination posts receives and the source sends; where a
transport is one-sided, the destination reads (pull), told which parts are final, or the source writes (push).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from xpyd.kv.plan import Plan
from xpyd.kv.staging import StagedPlan
from xpyd.scheduler.sequence import Sequence
from xpyd.transport.flow import ReadFlow
from xpyd.worker.messages import Accept, FirstToken, Offer, Release, Submit
from xpyd.worker.staged import StagedReceive

AnyPlan = Plan | StagedPlan


class HasParts(Protocol):
    """A plan, as far as releasing its pieces goes."""

    @property
    def part_ends(self) -> list[int]: ...


class SendSide(Protocol):
    """The source's end of a hand-off, whichever way its pieces travel."""

    @property
    def begin_ns(self) -> int | None: ...

    @property
    def done(self) -> bool: ...

    def release(self, count: int) -> None: ...

    def advance(self) -> bool: ...


class ReceiveSide(Protocol):
    """The destination's end."""

    @property
    def done(self) -> bool: ...

    def advance(self) -> bool: ...


@dataclass(slots=True)
class Undo:
    """A hand-off that was cancelled: what it was doing, and how its blocks become quiet."""

    attempt: int
    stage: str
    lost: bool  # the peer is lost: no answer comes, the transport alone tells when the blocks are quiet
    since_ns: int  # this rank's own clock


@dataclass(slots=True)
class Outgoing:
    """A request on its prefill rank, from its offer to its release."""

    submit: Submit
    transfer_seq: int
    sequence: Sequence | None = None  # once it runs: until then it has no blocks
    accept: Accept | None = None
    parts_ready: int = 0
    computed_ns: int = 0  # this rank's own clock, for the timeout only; 0: the prompt is not computed yet
    started_ns: int = 0  # likewise
    plan: HasParts | None = None
    flow: SendSide | None = None
    ended: bool = False  # all has left, and (one-sided push) the decode rank was told so
    release: Release | None = None
    broken: bool = False  # the transport failed: the client decides what becomes of it
    undo: Undo | None = None
    dropped: bool = False  # the peer has said that nothing moves any more: it was cancelled

    def parts_done(self, num_parts: int) -> None:
        """The KV of the first ``num_parts`` parts is final: those pieces may leave."""
        self.parts_ready = max(self.parts_ready, num_parts)
        if self.flow is not None and self.plan is not None and self.parts_ready:
            self.flow.release(self.plan.part_ends[self.parts_ready - 1])


@dataclass(slots=True)
class Incoming:
    """A request on its decode rank, from its offer to its admission."""

    source: int
    offer: Offer
    source_table: list[int]  # empty until a push is announced
    table: list[int] = field(default_factory=list)
    num_here: int = 0  # blocks of it whose KV was here already
    reserved_ns: int = 0  # the client's clock
    since_ns: int = 0  # this rank's own clock, for the timeout only: accepted, or (then) the prompt is computed
    parts_ready: int = 0
    plan: AnyPlan | None = None
    flow: ReceiveSide | None = None
    num_inflight: int = 0
    landed_ns: int | None = None
    first: FirstToken | None = None
    released: bool = False  # the source has its blocks back
    broken: bool = False  # as in Outgoing
    undo: Undo | None = None
    dropped: bool = False

    @property
    def staged(self) -> bool:
        return isinstance(self.flow, StagedReceive)

    def parts_done(self, num_parts: int) -> None:
        """The first ``num_parts`` parts are final at the source; a read may fetch them."""
        self.parts_ready = max(self.parts_ready, num_parts)
        if isinstance(self.flow, ReadFlow) and isinstance(self.plan, Plan) and self.parts_ready:
            self.flow.release(self.plan.part_ends[self.parts_ready - 1])
