"""Links with fair share: every rank has one, and transfers under way at the same end share it equally.

But for those from one rank to the same other: these go over one connection, in the order in which they were posted. One
whose pieces are all posted at once (``at_once``) is sent before any behind it; longer ones take turns, an equal share.

A flow gets the smaller of its shares at the source and at the destination, as ``LinkModel`` has it for one link, what
several at once gain or lose included; what a slow other end leaves unused is not given away (that would be max-min
fairness). ``alpha`` is added at the end, descriptors count as the bytes that they delay. A flow may only send what is
computed: it is released in parts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from xpyd.economics.cost import LinkModel
from xpyd.simulate.account import Flight
from xpyd.simulate.agenda import Agenda, Event
from xpyd.simulate.costs import PS_PER_S, to_ps

if TYPE_CHECKING:
    from xpyd.simulate.handoff import Handoffs


@mypyc_attr(acyclic=True)
class Port:
    """One instance's links, one per rank: the flows that cross them now, by direction, and those to come in order."""

    __slots__ = ("incoming", "outgoing", "waiting", "width")

    def __init__(self, width: int) -> None:
        self.width = width
        self.outgoing: list[Flow] = []
        self.incoming: list[Flow] = []
        self.waiting: list[Flow] = []  # to come in, each behind another from its source


@mypyc_attr(acyclic=True)
class Flow(Event):
    """One hand-off on the wire. ``total`` counts bytes, descriptors as bytes too; so do ``sent`` and ``released``.

    It happens when all that is released has been sent, and when its last byte arrives.
    """

    __slots__ = (
        "active",
        "at_once",
        "attempt",
        "begin_ps",
        "destination",
        "drained",
        "flight",
        "links",
        "num_inflight",
        "rate",
        "released",
        "sent",
        "since_ps",
        "source",
        "total",
    )

    def __init__(
        self,
        links: Links,
        flight: Flight,
        attempt: int,
        source: Port,
        destination: Port,
        total: float,
        at_once: bool,
    ) -> None:
        super().__init__()
        self.links = links
        self.flight = flight
        self.attempt = attempt
        self.source = source
        self.destination = destination
        self.total = total
        self.at_once = at_once
        self.num_inflight = len(destination.incoming) + len(destination.waiting)
        self.released = 0.0
        self.sent = 0.0
        self.rate = 0.0  # bytes per picosecond
        self.since_ps = 0
        self.begin_ps = -1
        self.active = False  # it is sending
        self.drained = False  # all is sent, the last byte under way

    def moved(self, now_ps: int) -> float:
        """What of ``total`` has been sent by now."""
        return min(self.released, self.sent + self.rate * (now_ps - self.since_ps)) if self.active else self.sent

    def happen(self, now_ps: int) -> None:
        if self.drained:
            self.links.landed(self, now_ps)
        else:
            self.links.drain(self, now_ps)


class Links:
    """All flows, each with so many pieces posted at once. ``handoffs`` hears of it when a last byte has arrived."""

    def __init__(self, link: LinkModel, pieces_in_flight: int, agenda: Agenda, handoffs: Handoffs) -> None:
        self._link = link
        self._gains = link.gain_2 != 1.0 or link.gain_4 != 1.0
        self._per_ps = link.bytes_per_s / PS_PER_S
        self._alpha_ps = to_ps(link.alpha_s)
        self._bytes_per_descriptor = link.gamma_s * link.bytes_per_s
        self._pieces_in_flight = pieces_in_flight
        self._agenda = agenda
        self._handoffs = handoffs

    def open(self, flight: Flight, source: Port, destination: Port, num_bytes: float, num_descriptors: int) -> Flow:
        """A flow of which nothing is released yet."""
        total = num_bytes + num_descriptors * self._bytes_per_descriptor
        at_once = num_descriptors <= self._pieces_in_flight
        return Flow(self, flight, flight.attempt, source, destination, total, at_once)

    def release(self, flow: Flow, now_ps: int, share: float) -> None:
        """``share`` of the flow, from its begin, may leave; it starts or goes on if it had nothing to send."""
        self._settle(flow, now_ps)
        flow.released = max(flow.released, share * flow.total)
        if flow.active:
            self._plan(flow)
        elif flow.released > flow.sent and flow not in flow.destination.waiting:
            if flow.begin_ps < 0:
                flow.begin_ps = now_ps
            if self._behind(flow):
                flow.destination.waiting.append(flow)
            else:
                self._start(flow, now_ps)

    def cancel(self, flow: Flow, now_ps: int) -> None:
        """Take a flow off the wire; it never lands."""
        self._agenda.cancel(flow)
        if flow.active:
            self._stop(flow, now_ps)
        elif flow in flow.destination.waiting:
            flow.destination.waiting.remove(flow)

    def _behind(self, flow: Flow) -> bool:
        """Whether its connection is full of another's pieces."""
        return any(other.at_once and other.destination is flow.destination for other in flow.source.outgoing)

    def _start(self, flow: Flow, now_ps: int) -> None:
        flow.since_ps = now_ps
        flow.active = True
        flow.source.outgoing.append(flow)
        flow.destination.incoming.append(flow)
        self._share_anew(flow, now_ps)

    def _stop(self, flow: Flow, now_ps: int) -> None:
        flow.active = False
        flow.source.outgoing.remove(flow)
        flow.destination.incoming.remove(flow)
        for other in [each for each in flow.destination.waiting if each.source is flow.source]:
            if not self._behind(other):
                flow.destination.waiting.remove(other)
                self._start(other, now_ps)
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
            sharing = ours if ours > theirs else theirs
            rate = self._per_ps / sharing
            if self._gains:
                rate *= self._link.gain(sharing)
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
        left_ps = round((flow.released - flow.sent) / flow.rate)
        self._agenda.plan(flow.since_ps + left_ps, flow)

    def drain(self, flow: Flow, now_ps: int) -> None:
        """All that was released is sent."""
        flow.sent = flow.released
        flow.since_ps = now_ps
        self._stop(flow, now_ps)
        if flow.released >= flow.total:
            flow.drained = True
            self._agenda.plan(now_ps + self._alpha_ps, flow)

    def landed(self, flow: Flow, now_ps: int) -> None:
        """The last byte of it has arrived."""
        self._handoffs.landed(flow.flight, flow.attempt, now_ps)
