"""The leaders of a hand-off between instances of several ranks: ends that speak for all their ranks.

To their peer they behave as single ranks do. What differs is what a transfer is: it is done when every rank of the
instance has moved its heads.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict

from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.worker.desk import Desk
from xpyd.worker.destination import DestinationEnd
from xpyd.worker.engine import Engine
from xpyd.worker.handoff import Incoming, Outgoing
from xpyd.worker.messages import AnyMessage, Final, FirstToken, Move, Moved, Sums
from xpyd.worker.mover import Mover
from xpyd.worker.shards import Shapes, ShardReceive, ShardSend
from xpyd.worker.source import SourceEnd


class LeaderSend:
    """A request's KV on its way out of an instance: this rank's part, and what the followers say of theirs."""

    def __init__(self, own: ShardSend, desk: Desk) -> None:
        self.own = own
        self.num_pieces = own.part_ends[-1]
        self._offset_ns = desk.clock.offset_ns
        self._waiting = set(desk.followers)
        self._begins_ns: list[int] = []  # the followers', on this rank's clock

    @property
    def begin_ns(self) -> int | None:
        """When the first rank posted its first piece, as this rank's perf_counter_ns."""
        own = [] if self.own.begin_ns is None else [self.own.begin_ns]
        return min(own + self._begins_ns, default=None)

    @property
    def done(self) -> bool:
        return self.own.done and not self._waiting

    def release(self, count: int) -> None:
        """The parts that make up this rank's first ``count`` pieces are final."""
        self.own.release_parts(bisect_right(self.own.part_ends, count))

    def advance(self) -> bool:
        return self.own.advance()

    def moved(self, rank: int, message: Moved) -> None:
        """A follower has sent all of its part."""
        self._waiting.remove(rank)
        self.num_pieces += message.num_pieces
        if message.begin_ns:
            self._begins_ns.append(message.begin_ns - self._offset_ns)


class LeaderReceive:
    """A request's KV on its way into an instance, likewise; the last rank to have it decides."""

    def __init__(self, own: ShardReceive, desk: Desk, sums: dict[int, Sums]) -> None:
        self.own = own
        self._sums = sums
        self._waiting = set(desk.followers)
        self._followers_ns = 0

    @property
    def done(self) -> bool:
        return self.own.done and not self._waiting

    @property
    def landed_ns(self) -> int:
        """When the last byte was in the last rank's pool, on the client's clock."""
        return max(self.own.landed_ns, self._followers_ns)

    def advance(self) -> bool:
        return not self.own.done and self.own.advance(self._sums)

    def moved(self, rank: int, message: Moved) -> None:
        """A follower has received, and checked, all of its part."""
        self._waiting.remove(rank)
        self._followers_ns = max(self._followers_ns, message.end_ns)


class ShardedSource(SourceEnd):
    """The leader of a prefill instance."""

    def __init__(self, engine: Engine, mover: Mover, shapes: Shapes) -> None:
        super().__init__(engine, mover)
        self._shapes = shapes
        self._one_sided_pull = False  # ranks send to ranks: see Shapes

    def handle(self, source: int, message: AnyMessage) -> bool:
        if not isinstance(message, Moved):
            return super().handle(source, message)
        flow = self._outgoing[message.request_id].flow
        assert isinstance(flow, LeaderSend)
        flow.moved(source, message)
        return True

    def finals(self, plan: StepPlan) -> list[Final]:
        found = []
        for chunk in plan.prefills:
            request_id, num_parts = chunk.sequence.request_id, 0
            if request_id not in self._submits:
                continue
            if chunk.samples:
                num_parts = self._shapes.num_parts(len(chunk.sequence.block_table))
            elif self._config.mode == "chunkwise" and self._blocks_per_part is not None:
                full_blocks = (chunk.start + chunk.num_tokens) // self._cache.block_size
                num_parts = full_blocks // self._blocks_per_part
            found.append(Final(request_id, num_parts, self._config.mode == "layerwise" and chunk.samples))
        return found

    def _start(self, outgoing: Outgoing) -> None:
        sequence, accept, submit = outgoing.sequence, outgoing.accept, outgoing.submit
        assert sequence is not None
        assert accept is not None
        tables = sequence.block_table, accept.table
        move = Move(submit.request_id, submit.peer, True, outgoing.transfer_seq, *tables)
        self.desk.mailbox.send_all(self.desk.followers, move)
        send = ShardSend(self._transport, self.desk, self._cache.buffer, self._shapes, move)
        outgoing.plan, outgoing.flow = send, LeaderSend(send, self.desk)
        outgoing.started_ns = time.perf_counter_ns()
        outgoing.parts_done(outgoing.parts_ready)
        outgoing.flow.advance()

    def _num_pieces(self, outgoing: Outgoing) -> int:
        assert isinstance(outgoing.flow, LeaderSend)
        return outgoing.flow.num_pieces

    def _payload_bytes(self, outgoing: Outgoing) -> int:
        """What all destination ranks receive: a copy of a head for each that holds it."""
        assert outgoing.sequence is not None
        return self._shapes.payload_bytes(outgoing.submit.peer, len(outgoing.sequence.block_table))

    def _checksums(self, peer: int, sequence: Sequence) -> bytes:
        """None here: each rank sums what it sent, see ShardSend."""
        return b""


class ShardedDestination(DestinationEnd):
    """The leader of a decode instance."""

    skips_blocks = False  # each rank plans its own pairs from whole tables

    def __init__(self, engine: Engine, mover: Mover, shapes: Shapes) -> None:
        super().__init__(engine, mover)
        self._shapes = shapes
        self._one_sided_pull = False
        self._sums: defaultdict[int, dict[int, Sums]] = defaultdict(dict)

    def handle(self, source: int, message: AnyMessage) -> bool:
        match message:
            case Moved():
                flow = self._incoming[message.request_id].flow
                assert isinstance(flow, LeaderReceive)
                flow.moved(source, message)
            case Sums():
                self._sums[message.request_id][source] = message
            case _:
                return super().handle(source, message)
        return True

    def _post_receives(self, incoming: Incoming) -> None:
        offer = incoming.offer
        tables = incoming.source_table, incoming.table
        move = Move(offer.request_id, incoming.source, False, offer.transfer_seq, *tables)
        self.desk.mailbox.send_all(self.desk.followers, move)
        receive = ShardReceive(self._transport, self.desk, self._cache.buffer, self._shapes, move)
        incoming.flow = LeaderReceive(receive, self.desk, self._sums[offer.request_id])

    def _advance(self, incoming: Incoming) -> bool:
        """The transfer ended when the last byte had landed, not when the last follower's word of it came."""
        moved = super()._advance(incoming)
        if incoming.landed_ns is not None and isinstance(incoming.flow, LeaderReceive):
            incoming.landed_ns = incoming.flow.landed_ns
        return moved

    def _verify(self, incoming: Incoming, first: FirstToken) -> bool:
        """Every rank has compared what it got, before it was done."""
        assert isinstance(incoming.flow, LeaderReceive)
        del self._sums[incoming.offer.request_id]
        return incoming.flow.own.verified
