"""Links with fair share: every rank has one, and transfers under way at the same end share it equally.

A flow gets the smaller of its shares at the source and at the destination, as ``LinkModel`` has it for one link; what
a slow other end leaves unused is not given away (that would be max-min fairness). ``alpha`` is added at the end,
descriptors count as the bytes that they delay. A flow may only send what is computed: it is released in parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xpyd.economics.cost import LinkModel
from xpyd.simulate.account import Flight
from xpyd.simulate.agenda import Agenda, Event
from xpyd.simulate.costs import PS_PER_S, to_ps

if TYPE_CHECKING:
    from xpyd.simulate.handoff import Handoffs


@dataclass(slots=True, eq=False)
class Port:
    """One instance's links, one per rank: the flows that cross them now, by direction."""

    width: int
    outgoing: list[Flow] = field(default_factory=list)
    incoming: list[Flow] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Flow:
    """One hand-off on the wire. ``total`` counts bytes, descriptors as bytes too; so do ``sent`` and ``released``."""

    flight: Flight | None  # nobody's once it is cancelled
    attempt: int
    source: Port
    destination: Port
    total: float
    num_inflight: int
    released: float = 0.0
    sent: float = 0.0
    rate: float = 0.0  # bytes per picosecond
    since_ps: int = 0
    version: int = 0
    begin_ps: int = -1
    active: bool = False  # it is sending

    def moved(self, now_ps: int) -> float:
        """What of ``total`` has been sent by now."""
        return min(self.released, self.sent + self.rate * (now_ps - self.since_ps)) if self.active else self.sent


class Links:
    """All flows. ``handoffs`` hears of it when a last byte has arrived."""

    def __init__(self, link: LinkModel, agenda: Agenda, handoffs: Handoffs) -> None:
        self._per_ps = link.bytes_per_s / PS_PER_S
        self._alpha_ps = to_ps(link.alpha_s)
        self._bytes_per_descriptor = link.gamma_s * link.bytes_per_s
        self._agenda = agenda
        self._handoffs = handoffs

    def open(self, flight: Flight, source: Port, destination: Port, num_bytes: float, num_descriptors: int) -> Flow:
        """A flow of which nothing is released yet."""
        total = num_bytes + num_descriptors * self._bytes_per_descriptor
        return Flow(flight, flight.attempt, source, destination, total, len(destination.incoming))

    def release(self, flow: Flow, now_ps: int, share: float) -> None:
        """``share`` of the flow, from its begin, may leave; it starts or goes on if it had nothing to send."""
        self._settle(flow, now_ps)
        flow.released = max(flow.released, share * flow.total)
        if flow.active:
            self._plan(flow)
        elif flow.released > flow.sent:
            if flow.begin_ps < 0:
                flow.begin_ps = now_ps
            flow.active = True
            flow.source.outgoing.append(flow)
            flow.destination.incoming.append(flow)
            self._share_anew(flow, now_ps)

    def cancel(self, flow: Flow, now_ps: int) -> None:
        """Take a flow off the wire; it never lands."""
        flow.version += 1
        flow.flight = None
        if flow.active:
            self._stop(flow, now_ps)

    def _stop(self, flow: Flow, now_ps: int) -> None:
        flow.active = False
        flow.source.outgoing.remove(flow)
        flow.destination.incoming.remove(flow)
        if flow.source.outgoing or flow.destination.incoming:
            self._share_anew(flow, now_ps)

    def _share_anew(self, flow: Flow, now_ps: int) -> None:
        """The number of flows at both ends of ``flow`` has changed: so do the rates of all of them."""
        flows = flow.source.outgoing
        if flow.destination.incoming != flows:
            flows = list(dict.fromkeys((*flows, *flow.destination.incoming)))
        for other in flows:
            source, destination = other.source, other.destination
            ours, theirs = len(source.outgoing) / source.width, len(destination.incoming) / destination.width
            rate = self._per_ps / (ours if ours > theirs else theirs)
            if other is flow or rate != other.rate:
                self._settle(other, now_ps)
                other.rate = rate
                self._plan(other)

    def _settle(self, flow: Flow, now_ps: int) -> None:
        if flow.active:
            sent = flow.sent + flow.rate * (now_ps - flow.since_ps)
            flow.sent = sent if sent < flow.released else flow.released
        flow.since_ps = now_ps

    def _plan(self, flow: Flow) -> None:
        """When it will have sent what is released, if nothing changes."""
        flow.version += 1
        left_ps = round((flow.released - flow.sent) / flow.rate)
        self._agenda.plan(flow.since_ps + left_ps, _Drained(self, flow, flow.version))

    def drained(self, flow: Flow, now_ps: int) -> None:
        """All that was released is sent."""
        flow.sent = flow.released
        flow.since_ps = now_ps
        self._stop(flow, now_ps)
        if flow.released >= flow.total and flow.flight is not None:
            self._agenda.plan(now_ps + self._alpha_ps, _Landed(self._handoffs, flow.flight, flow.attempt))


class _Drained(Event):
    __slots__ = ("flow", "links", "version")

    def __init__(self, links: Links, flow: Flow, version: int) -> None:
        self.links = links
        self.flow = flow
        self.version = version

    def happen(self, now_ps: int) -> None:
        if self.version == self.flow.version:
            self.links.drained(self.flow, now_ps)


class _Landed(Event):
    __slots__ = ("attempt", "flight", "handoffs")

    def __init__(self, handoffs: Handoffs, flight: Flight, attempt: int) -> None:
        self.handoffs = handoffs
        self.flight = flight
        self.attempt = attempt

    def happen(self, now_ps: int) -> None:
        self.handoffs.landed(self.flight, self.attempt, now_ps)
