"""The destination's end of the hand-off: takes KV into free blocks, and admits the request to the decode batch."""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from xpyd.kv.checksum import checksums, mismatches
from xpyd.kv.coalesce import choose
from xpyd.model.sampled import Sampled
from xpyd.records import CacheRow, CoalescingRow
from xpyd.request import Stage
from xpyd.scheduler.base import NeverFits
from xpyd.scheduler.sequence import Sequence
from xpyd.transport.base import TransportError
from xpyd.transport.flow import ReadFlow, RecvFlow
from xpyd.worker.engine import Engine
from xpyd.worker.errors import WorkerError
from xpyd.worker.handoff import Incoming
from xpyd.worker.messages import (
    Accept,
    Announce,
    AnyMessage,
    Dropped,
    FirstToken,
    Landed,
    Offer,
    Ready,
    Release,
    unpack_prompt,
)
from xpyd.worker.mover import Mover
from xpyd.worker.output import Output
from xpyd.worker.staged import StagedReceive
from xpyd.worker.undo import UndoingDestination


class DestinationEnd(UndoingDestination):
    skips_blocks = True  # with a prefix cache, KV that is here already does not move

    def __init__(self, engine: Engine, mover: Mover) -> None:
        super().__init__(engine, mover)
        self.ledger_bytes = 0  # KV bytes that the plans of incoming transfers promised
        self._costs = mover.costs
        self._incoming: dict[int, Incoming] = {}
        self._offers: deque[Incoming] = deque()  # not yet accepted: waiting for free blocks, first come first served

    def handle(self, source: int, message: AnyMessage) -> bool:
        match message:
            case Offer() if message.attempt <= self.mover.cancelled.get(message.request_id, -1):
                self.desk.mailbox.send(source, Dropped(message.request_id, message.attempt))
            case Offer():
                self._offered(Incoming(source, message, message.table))
            case Announce() | Ready() | FirstToken() | Landed() | Dropped():
                known = self._incoming.get(message.request_id)
                stale = isinstance(message, Dropped) and known is not None and message.attempt != known.offer.attempt
                if known is None or stale:
                    return False
                self._told(known, message)
            case _:
                return False
        return True

    def _offered(self, incoming: Incoming) -> None:
        """Queue an offer; one that the pool can never take fails, and rests until the client has cancelled it."""
        self.expects = True  # where KV has come, more may
        self._incoming[incoming.offer.request_id] = incoming
        if self._can_fit(incoming.offer):
            self._offers.append(incoming)

    def fail_stranded(self) -> None:
        """Quarantine has shrunk the pool: offers that it can never take any more fail likewise."""
        self._offers = deque(incoming for incoming in self._offers if self._can_fit(incoming.offer))

    def _can_fit(self, offer: Offer) -> bool:
        """Tells the client where not."""
        try:
            num_tokens = len(unpack_prompt(offer.prompt))
            self.engine.scheduler.check_fits(offer.request_id, num_tokens, offer.output_len)
        except NeverFits as error:
            self.desk.fail(offer.request_id, str(error))
            return False
        return True

    def _told(self, incoming: Incoming, message: Announce | Ready | FirstToken | Landed | Dropped) -> None:
        match message:
            case Announce():
                self._receive_push(incoming, message.table)
            case Ready():
                incoming.parts_done(message.num_parts)
            case FirstToken():
                incoming.first, incoming.since_ns = message, time.perf_counter_ns()
            case Landed():
                incoming.landed_ns = message.end_ns
            case Dropped():
                incoming.dropped = True

    def move(self) -> bool:
        busy = self._take()
        for incoming in list(self._incoming.values()):
            if incoming.undo is not None:
                self.move_undone(incoming, incoming.undo)
                continue
            if incoming.landed_ns is None or incoming.first is None:
                continue
            if not incoming.released:
                self._release(incoming, incoming.first, incoming.landed_ns)
            if self.engine.scheduler.can_admit:  # else a push that landed early: the queue that pull leaves to prefill
                self._admit(incoming, incoming.first)
                busy = True
        return busy

    def stages(self) -> dict[int, str]:
        return {request_id: _stage(incoming) for request_id, incoming in self._incoming.items()}

    def between_layers(self) -> None:
        self._take()

    @property
    def quiet(self) -> bool:
        return not self._incoming

    def unfinished(self) -> str:
        return f"{len(self._incoming)} hand-offs not admitted: {sorted(self._incoming)}"

    def _take(self) -> bool:
        """Accept offers, and move what was accepted; True when something did."""
        busy = self._transport.progress()
        while self._offers and self._accept(self._offers[0]):
            self._offers.popleft()
            busy = True
        for incoming in self._incoming.values():
            lost = incoming.undo is not None and incoming.undo.lost
            if incoming.flow is not None and incoming.landed_ns is None and not incoming.broken and not lost:
                try:
                    busy |= self._advance(incoming)
                except TransportError as error:
                    incoming.broken = True
                    self.mover.accuse(incoming.source, error)
        return busy

    def _advance(self, incoming: Incoming) -> bool:
        assert incoming.flow is not None
        moved = incoming.flow.advance()
        if incoming.flow.done:
            incoming.landed_ns = self.desk.clock.now_ns()
            if isinstance(incoming.flow, StagedReceive):
                incoming.flow.give_back(self._slots)
            return True
        if incoming.first is not None:  # everything may leave: from here on it has to arrive in time
            what = f"receiving the KV of request {incoming.offer.request_id} from rank {incoming.source}"
            self.mover.check_time(incoming.since_ns, what)
        return moved

    def _accept(self, incoming: Incoming) -> bool:
        """Take an offer if it fits: this is the back-pressure. A push takes any free block, a pull only what can run.

        A pull keeps a seat, and one block free for every running request; see ``Scheduler.reserve``.
        """
        offer, ahead = incoming.offer, self._config.direction == "push"
        if self._config.staging != "off" and self._slots.num_free < self._config.pieces_in_flight:
            return False  # staging memory is taken before blocks: whoever holds both can always go on
        prompt = unpack_prompt(offer.prompt) if self.skips_blocks else None
        table = self.engine.scheduler.reserve(offer.num_blocks, ahead, prompt)
        if table is None:
            return False
        self.engine.settle()  # before anything lands in a block that was evicted for it
        incoming.table, incoming.reserved_ns = table, self.desk.clock.now_ns()
        incoming.since_ns = time.perf_counter_ns()
        if prompt is not None:
            incoming.num_here = self.engine.scheduler.num_here(table, prompt)
            self._write_here(incoming, len(prompt))
        self.ledger_bytes += self.mover.wire_bytes(len(table) - incoming.num_here)
        if not ahead:
            self._receive_pull(incoming)
        self.desk.mailbox.send(incoming.source, Accept(offer.request_id, table, incoming.staged, incoming.num_here))
        return True

    def _write_here(self, incoming: Incoming, input_len: int) -> None:
        """What of a request's KV the prefix cache had, and the bytes that need not move for it."""
        scheduler = self.engine.scheduler.config
        if not scheduler.prefix_cache:
            return
        self.desk.rows.write(
            CacheRow(
                block=self.desk.block,
                request_id=incoming.offer.request_id,
                rank=self.desk.rank,
                role=self.desk.role.value,
                t_ns=incoming.reserved_ns,
                num_tokens=input_len,
                num_cached_tokens=incoming.num_here * scheduler.block_size,
                num_host_tokens=0,
                num_remote_tokens=0,
                saved_bytes=self.mover.wire_bytes(incoming.num_here),
            )
        )

    def _receive_pull(self, incoming: Incoming) -> None:
        """Post what there is to receive, directly or staged; a one-sided transport reads what is final."""
        incoming.num_inflight = self._num_inflight()
        if self._stage(incoming):
            plan = self.mover.plan_staged(incoming.source_table, incoming.table, incoming.num_here)
            slots = self._slots.take(self._config.pieces_in_flight)
            assert slots is not None, "looked at before the offer was taken"
            seq, packer = incoming.offer.transfer_seq, self.mover.packer()
            incoming.plan = plan
            incoming.flow = StagedReceive(self._transport, incoming.source, packer, plan, seq, slots)
        elif self._one_sided_pull:
            read = self.mover.plan(incoming.source_table, incoming.table, incoming.num_here)
            window = self._config.pieces_in_flight
            incoming.plan = read
            incoming.flow = ReadFlow(self._transport, incoming.source, read.source, read.destination, window)
            incoming.parts_done(incoming.parts_ready)
        else:
            self._post_receives(incoming)

    def _receive_push(self, incoming: Incoming, source_table: list[int]) -> None:
        incoming.num_inflight = self._num_inflight()
        incoming.source_table = source_table
        self._post_receives(incoming)

    def _post_receives(self, incoming: Incoming) -> None:
        plan = self.mover.plan(incoming.source_table, incoming.table, incoming.num_here)
        incoming.plan = plan
        seq = incoming.offer.transfer_seq
        incoming.flow = RecvFlow(self._transport, incoming.source, plan.destination, seq, plan.part_ends)

    def _stage(self, incoming: Incoming) -> bool:
        """Whether to go through staging memory; under ``auto`` by the predicted costs, which are kept as a row."""
        if self._config.staging != "auto":
            return self._config.staging == "on"
        assert self._costs is not None, "transfer.staging=auto needs measured costs"
        direct = self.mover.plan(incoming.source_table, incoming.table, incoming.num_here)
        staged = self.mover.plan_staged(incoming.source_table, incoming.table, incoming.num_here)
        num_pieces = len(direct.source), len(staged.pieces)
        choice = choose(self._costs, direct.nbytes, *num_pieces, staged.num_cells)
        self.desk.rows.write(
            CoalescingRow(
                block=self.desk.block,
                request_id=incoming.offer.request_id,
                payload_bytes=direct.nbytes,
                num_direct_pieces=num_pieces[0],
                num_staged_pieces=num_pieces[1],
                direct_s=choice.direct_s,
                staged_s=choice.staged_s,
                staged=choice.staged,
                reason=choice.reason,
            )
        )
        return choice.staged

    def _num_inflight(self) -> int:
        return sum(1 for other in self._incoming.values() if other.flow is not None and other.landed_ns is None)

    def _admit(self, incoming: Incoming, first: FirstToken) -> None:
        """All KV is here and there is a seat: join the decode batch."""
        offer = incoming.offer
        prompt = unpack_prompt(offer.prompt)
        known = [first.token], len(prompt), incoming.table
        sequence = Sequence(offer.request_id, prompt, offer.output_len, *known, offer.seed, offer.priority)
        self.engine.scheduler.admit(sequence)
        now_ns = self.desk.clock.now_ns()
        self.desk.stamp(offer.request_id, Stage.DECODE_ADMIT, now_ns)
        if self._config.first_token == "decode":
            self.desk.emit([Output(sequence, 0, Sampled(first.token, first.margin))], now_ns)
        del self._incoming[offer.request_id]

    def _release(self, incoming: Incoming, first: FirstToken, landed_ns: int) -> None:
        """All KV is here: verify, and give the source its blocks back with this end's account of the transfer."""
        verified = self._verify(incoming, first)
        self.desk.stamp(incoming.offer.request_id, Stage.TRANSFER_END, landed_ns)
        read = incoming.flow if isinstance(incoming.flow, ReadFlow) else None
        begin_ns = self.desk.clock.at(read.begin_ns) if read is not None and read.begin_ns is not None else 0
        num_pieces = incoming.plan.part_ends[-1] if read is not None and incoming.plan is not None else 0
        release = Release(
            incoming.offer.request_id,
            incoming.reserved_ns,
            begin_ns,
            landed_ns,
            num_pieces,
            incoming.num_inflight,
            incoming.staged,
            verified,
        )
        self.desk.mailbox.send(incoming.source, release)
        incoming.released = True

    def _verify(self, incoming: Incoming, first: FirstToken) -> bool:
        """Compare the checksums of every layer and block; raises WorkerError that names what differs."""
        if not first.checksums:
            return False
        found = checksums(self._cache.buffer, self._cache.layout, incoming.table)
        expected = np.frombuffer(first.checksums, dtype=found.dtype).reshape(found.shape)
        num_here = incoming.num_here  # these did not move: a prompt computed elsewhere may have rounded otherwise
        wrong = mismatches(expected[:, num_here:], found[:, num_here:])
        if wrong:
            raise WorkerError(
                f"{self.desk.who}: KV of request {first.request_id} from rank {incoming.source} "
                f"differs at (layer, block) {wrong[:8]}{' ...' if len(wrong) > 8 else ''}, {len(wrong)} in all"
            )
        return True


def _stage(incoming: Incoming) -> str:
    """Where a hand-off stands at its destination, in words."""
    source = f"rank {incoming.source}"
    if not incoming.table:
        return f"its KV is offered by {source}, and waits for a seat or blocks"
    if incoming.landed_ns is None:
        return f"its KV moves from {source}"
    return f"its KV from {source} is here" + ("" if incoming.first is not None else ", its first token is not")
