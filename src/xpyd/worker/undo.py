"""Hand-offs that end early: a request was cancelled, or a peer is lost. When are their blocks quiet?

Both ends alive: what has begun between two posting ends (messages) runs to its end, as there is no other moment at
which both know that nothing is on the wire; a one-sided end just posts no more. The decode rank frees its blocks when
nothing can land in them any more, and says ``Dropped``; only then, and once all that it has sent has left, does the
prefill rank free its own. The peer lost: the transport drops it, and the blocks are free when every ticket is quiet.
Where it cannot promise that within ``faults.detect_s``, they go into quarantine and are never handed out again.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import deque

from xpyd.transport.flow import Flow, OneSidedFlow
from xpyd.units import s_to_ns
from xpyd.worker.end import End
from xpyd.worker.handoff import Incoming, Outgoing, Undo
from xpyd.worker.messages import Dropped, Submit
from xpyd.worker.staged import StagedReceive, StagedSend


class UndoingEnd(End):
    """What both ends do."""

    def undo(self, attempt: int, stage: str, peer: int) -> Undo:
        return Undo(attempt, stage, peer in self.mover.lost, time.perf_counter_ns())

    def reusable(self, undo: Undo, flow: object, peer: int, touched: bool) -> bool | None:
        """Whether the blocks of a hand-off with a lost peer can be used again; None: not yet known.

        ``touched``: the peer may reach them by itself, by one-sided calls.
        """
        promised = self.mover.lost[peer]
        if isinstance(flow, Flow):
            if flow.quiet and (promised or not touched):
                return True
        elif promised or not touched:
            return True
        waited_ns = time.perf_counter_ns() - undo.since_ns
        return False if waited_ns > s_to_ns(self.desk.faults.detect_s) else None


class UndoingSource(UndoingEnd):
    """The source's part: see the module."""

    _submits: dict[int, Submit]
    _outgoing: dict[int, Outgoing]

    def cancel(self, request_id: int, attempt: int) -> bool:
        outgoing = self._outgoing.get(request_id)
        if outgoing is None:
            self._submits.pop(request_id, None)
            return False
        peer = outgoing.submit.peer
        outgoing.undo = self.undo(attempt, self.stages()[request_id], peer)
        outgoing.sequence = outgoing.sequence or self.engine.scheduler.find(request_id)
        assert outgoing.sequence is not None
        self.engine.scheduler.halt(outgoing.sequence)
        if outgoing.undo.lost:
            if isinstance(outgoing.flow, Flow):
                outgoing.flow.abandon()
        elif self._config.direction == "push" and outgoing.flow is None:
            self.desk.mailbox.send(peer, Dropped(request_id, attempt))  # nothing will come
            self._forget(outgoing, reuse=True)
        elif isinstance(outgoing.flow, OneSidedFlow):
            outgoing.flow.stop()
        elif not self._one_sided_pull:  # what was not computed goes too: the other end drops it all
            self._parts_done(outgoing, self._num_parts(outgoing))
            outgoing.computed_ns = outgoing.computed_ns or time.perf_counter_ns()
        return True

    def drop_orphans(self) -> None:
        """Cancel the hand-offs of requests that ended while their release was under way from a rank that is lost.

        The client cancels requests that it has; these it has not any more. A destination has none: a request ends
        after it was admitted there.
        """
        for request_id, outgoing in list(self._outgoing.items()):
            if outgoing.undo is None and outgoing.submit.peer in self.mover.lost:
                self.cancel(request_id, outgoing.submit.attempt)

    def move_undone(self, outgoing: Outgoing, undo: Undo) -> None:
        """Free the blocks of a cancelled hand-off where they are quiet."""
        if undo.lost:
            accepted = self._one_sided_pull and outgoing.accept is not None
            reuse = self.reusable(undo, outgoing.flow, outgoing.submit.peer, accepted)
            if reuse is not None:
                self._forget(outgoing, reuse)
        elif outgoing.dropped and (outgoing.flow is None or outgoing.ended):
            self._forget(outgoing, reuse=True)

    def _forget(self, outgoing: Outgoing, reuse: bool) -> None:
        undo, request_id = outgoing.undo, outgoing.submit.request_id
        assert undo is not None
        assert outgoing.sequence is not None
        if isinstance(outgoing.flow, StagedSend) and not outgoing.ended and reuse:
            outgoing.flow.give_back(self._slots)
        del self._outgoing[request_id], self._submits[request_id]
        self.engine.scheduler.release(outgoing.sequence, reuse)
        self.desk.confirm(request_id, undo.attempt, undo.stage)

    @abstractmethod
    def _parts_done(self, outgoing: Outgoing, num_parts: int) -> None:
        """The first parts may leave."""

    @abstractmethod
    def _num_parts(self, outgoing: Outgoing) -> int:
        """All of them."""


class UndoingDestination(UndoingEnd):
    """The destination's part."""

    _incoming: dict[int, Incoming]
    _offers: deque[Incoming]

    def cancel(self, request_id: int, attempt: int) -> bool:
        incoming = self._incoming.get(request_id)
        if incoming is None:
            return False
        incoming.undo = self.undo(attempt, self.stages()[request_id], incoming.source)
        if not incoming.table:
            if incoming in self._offers:
                self._offers.remove(incoming)
            self._forget(incoming)
        elif incoming.undo.lost and isinstance(incoming.flow, Flow):
            incoming.flow.abandon()
        elif isinstance(incoming.flow, OneSidedFlow):
            incoming.flow.stop()
        return True

    def move_undone(self, incoming: Incoming, undo: Undo) -> None:
        """Free the blocks of a cancelled hand-off where nothing can land in them any more."""
        if undo.lost and incoming.landed_ns is None:
            reuse = self.reusable(undo, incoming.flow, incoming.source, self._one_sided_push)
            if reuse is not None:
                self._free(incoming, reuse)
        elif incoming.landed_ns is not None or incoming.dropped:
            self._free(incoming, reuse=True)

    def _free(self, incoming: Incoming, reuse: bool) -> None:
        if isinstance(incoming.flow, StagedReceive) and incoming.landed_ns is None and reuse:
            incoming.flow.give_back(self._slots)
        self.engine.scheduler.unreserve(incoming.table, reuse)
        self._forget(incoming)

    def _forget(self, incoming: Incoming) -> None:
        undo, request_id = incoming.undo, incoming.offer.request_id
        assert undo is not None
        del self._incoming[request_id]
        if not undo.lost and not incoming.released:
            self.desk.mailbox.send(incoming.source, Dropped(request_id, undo.attempt))
        self.desk.confirm(request_id, undo.attempt, undo.stage)
