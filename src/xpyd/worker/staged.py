"""The staged hand-off's two ends: gather and send, receive and scatter; the same interface as transport/flow's."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from time import perf_counter_ns

from xpyd.kv.layout import Span
from xpyd.kv.staging import Slots, StagedPlan
from xpyd.transport.base import Ticket, Transport
from xpyd.transport.flow import Flow, tag_of
from xpyd.worker.packing import Packer


class StagedSend(Flow):
    """Gathers each released piece into a slot of its own and sends it from there.

    ``begin_ns`` is stamped before the first gather: staging, and encoding with it, belongs to the bill.
    """

    def __init__(
        self, transport: Transport, peer: int, packer: Packer, plan: StagedPlan, seq: int, slots: list[int]
    ) -> None:
        self._transport = transport
        self._peer = peer
        self._packer = packer
        self._plan = plan
        self._seq = seq
        self._slots = slots
        self._free = deque(slots)
        self._released = 0
        self._posted = 0
        self._flying: deque[tuple[Ticket, int]] = deque()
        self.begin_ns: int | None = None

    @property
    def flying(self) -> Iterator[Ticket]:
        return (ticket for ticket, _ in self._flying)

    @property
    def done(self) -> bool:
        return self._posted == len(self._plan.pieces) and not self._flying

    def release(self, count: int) -> None:
        """The first ``count`` pieces hold their final content and may leave."""
        self._released = max(self._released, count)

    def advance(self) -> bool:
        """Reap what is complete, gather and post what may leave; True when something changed. Raises TransportError."""
        changed = False
        while self._flying and self._flying[0][0].done():
            self._free.append(self._flying.popleft()[1])
            changed = True
        while self._posted < self._released and self._free:
            if self.begin_ns is None:
                self.begin_ns = perf_counter_ns()
            slot = self._free.popleft()
            nbytes = self._packer.pack(self._plan.pieces[self._posted].source, slot)
            ticket = self._transport.send(self._peer, [Span(slot, nbytes)], tag_of(self._seq, self._posted))
            self._flying.append((ticket, slot))
            self._posted += 1
            changed = True
        return changed

    def give_back(self, slots: Slots) -> None:
        """Return the borrowed slots; nothing is in flight any more."""
        assert self.done or self.quiet
        slots.give_back(self._slots)


class StagedReceive(Flow):
    """Receives each piece into a slot and scatters it to its blocks; as many are posted as there are slots."""

    def __init__(
        self, transport: Transport, peer: int, packer: Packer, plan: StagedPlan, seq: int, slots: list[int]
    ) -> None:
        self._transport = transport
        self._peer = peer
        self._packer = packer
        self._plan = plan
        self._seq = seq
        self._slots = slots
        self._posted = 0
        self._scattered = 0
        self._flying: deque[tuple[Ticket, int]] = deque()
        for slot in slots:
            self._post(slot)

    @property
    def flying(self) -> Iterator[Ticket]:
        return (ticket for ticket, _ in self._flying)

    @property
    def done(self) -> bool:
        return self._scattered == len(self._plan.pieces)

    def advance(self) -> bool:
        """Scatter what has landed and receive the next pieces; True when everything is in place."""
        while self._flying and self._flying[0][0].done():
            slot = self._flying.popleft()[1]
            cells = self._plan.pieces[self._scattered].destination
            self._packer.unpack(cells, slot)
            self._scattered += 1
            self._post(slot)
        return self.done

    def give_back(self, slots: Slots) -> None:
        """Return the borrowed slots; nothing is in flight any more."""
        assert self.done or self.quiet
        slots.give_back(self._slots)

    def _post(self, slot: int) -> None:
        if self._posted == len(self._plan.pieces):
            return
        nbytes = len(self._plan.pieces[self._posted].destination) * self._plan.cell_bytes
        ticket = self._transport.recv(self._peer, [Span(slot, nbytes)], tag_of(self._seq, self._posted))
        self._flying.append((ticket, slot))
        self._posted += 1
