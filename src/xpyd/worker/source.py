"""The source's end of the hand-off: offers the KV of prompts, and gives it: whole, layer by layer, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Iterator

from xpyd.kv.plan import Plan
from xpyd.records import TransferRow
from xpyd.request import Stage
from xpyd.scheduler.sequence import Chunk, Sequence, StepPlan
from xpyd.transport.base import TransportError
from xpyd.transport.flow import SendFlow, WriteFlow
from xpyd.worker.engine import Engine
from xpyd.worker.handoff import Outgoing
from xpyd.worker.messages import (
    Accept,
    Announce,
    AnyMessage,
    Dropped,
    Final,
    FirstToken,
    Landed,
    Offer,
    Ready,
    Release,
    Submit,
)
from xpyd.worker.mover import Mover, while_moving
from xpyd.worker.output import Output
from xpyd.worker.staged import StagedSend
from xpyd.worker.undo import UndoingSource

LAYERS_AHEAD = 2  # of a prompt's end: the answer is here then, and no block of the destination waits for long


class SourceEnd(UndoingSource):
    def __init__(self, engine: Engine, mover: Mover) -> None:
        super().__init__(engine, mover)
        self._submits: dict[int, Submit] = {}  # requests that will move, or do
        self._outgoing: dict[int, Outgoing] = {}
        self._step: list[Chunk] = []  # the prompt chunks of the running step that will move
        self._transfer_seq: dict[int, int] = {}  # per destination
        self._verified: set[int] = set()  # destinations whose first transfer of this block is checked

    def take(self, submit: Submit, input_len: int) -> None:
        """A request whose prompt is queued here, to decode at ``submit.peer``."""
        self._submits[submit.request_id] = submit
        if self._config.direction == "push":
            self._offer(submit, input_len)

    def handle(self, source: int, message: AnyMessage) -> bool:
        if not isinstance(message, Accept | Release | Dropped):
            return False
        outgoing = self._outgoing.get(message.request_id)
        stale = isinstance(message, Dropped) and outgoing is not None and message.attempt != outgoing.submit.attempt
        if outgoing is None or stale:
            return False
        self._answered(outgoing, message)
        return True

    def _answered(self, outgoing: Outgoing, message: Accept | Release | Dropped) -> None:
        match message:
            case Accept():
                outgoing.accept = message
                self._start(outgoing)
            case Release():
                outgoing.release = message
                if outgoing.flow is None or outgoing.ended:  # else when the last send is reaped: then it is quiet
                    self._released(outgoing, message)
            case Dropped():  # maybe before this rank gets its own word of the cancel
                outgoing.dropped = True

    def before_run(self, plan: StepPlan) -> None:
        """The step's chunks that will move are offered where the first part becomes final while it runs."""
        self._step = [c for c in plan.prefills if c.sequence.request_id in self._submits]
        for chunk in self._step:
            outgoing = self._outgoing.get(chunk.sequence.request_id)
            if outgoing is None and self._offered_before(chunk):
                self._offer_prompt(chunk.sequence)
            elif outgoing is not None and outgoing.sequence is None:
                self._has_blocks(outgoing, chunk.sequence)

    def layer_done(self, layer: int) -> None:
        """A layer of the running step is in the pool: what it makes final may leave.

        Prompts that are computed with this step are offered before its last layers at the latest: asked for at its end,
        the answer would be found within the next prompt, or behind it.
        """
        if layer == max(0, self._cache.layout.num_layers - LAYERS_AHEAD):
            for chunk in self._step:
                if chunk.samples and chunk.sequence.request_id not in self._outgoing:
                    self._offer_prompt(chunk.sequence)
        for outgoing, num_parts in self._finals(layer):
            self._parts_done(outgoing, num_parts)

    def finals(self, plan: StepPlan) -> list[Final]:
        """What followers may send once they have run this step; a single rank has none."""
        return []

    @property
    def emits_first(self) -> bool:
        """Whether token 0 of what moves goes to the client from here."""
        return self._config.first_token == "prefill"

    def between_layers(self) -> None:
        while_moving(self._move_kv)

    def moving(self, outputs: list[Output]) -> list[Output]:
        """Those of a step's outputs whose requests decode elsewhere."""
        return [output for output in outputs if output.sequence.request_id in self._submits]

    def computed(self, outputs: list[Output]) -> None:
        """Prompts are computed: every part may leave, and what can leaves now."""
        self._step = []
        for output in outputs:
            self._computed(output.sequence)
        self.move()

    def move(self) -> bool:
        served = self._one_sided_pull and any(o.accept is not None for o in self._outgoing.values())
        return self._move_kv() or served  # a read moves only while this end progresses

    def _move_kv(self) -> bool:
        busy = self._transport.progress()
        for outgoing in list(self._outgoing.values()):
            lost = outgoing.undo is not None and outgoing.undo.lost
            if outgoing.flow is not None and not outgoing.ended and not outgoing.broken and not lost:
                busy |= self._advance(outgoing)
            if outgoing.undo is not None:
                self.move_undone(outgoing, outgoing.undo)
        return busy

    def _advance(self, outgoing: Outgoing) -> bool:
        assert outgoing.flow is not None
        submit = outgoing.submit
        try:
            moved = outgoing.flow.advance()
        except TransportError as error:
            outgoing.broken = True
            self.mover.accuse(submit.peer, error)
            return True
        if outgoing.flow.done:
            self._ended(outgoing)
        elif outgoing.computed_ns:  # before, the pieces wait for the prompt
            what = f"sending the KV of request {submit.request_id} to rank {submit.peer}"
            self.mover.check_time(max(outgoing.started_ns, outgoing.computed_ns), what)
        return moved

    @property
    def quiet(self) -> bool:
        return not self._outgoing

    def stages(self) -> dict[int, str]:
        return {request_id: _stage(outgoing) for request_id, outgoing in self._outgoing.items()}

    def unfinished(self) -> str:
        return f"{len(self._outgoing)} hand-offs without release: {sorted(self._outgoing)}"

    def _offered_before(self, chunk: Chunk) -> bool:
        """Whether a pull is offered before this chunk runs: the first part becomes final in it."""
        return {"whole": False, "layerwise": chunk.samples, "chunkwise": True}[self._config.mode]

    def _finals(self, layer: int) -> Iterator[tuple[Outgoing, int]]:
        """What of the running step is final now that ``layer`` is in the pool: requests and their number of parts."""
        for chunk in self._step:
            outgoing = self._outgoing.get(chunk.sequence.request_id)
            if outgoing is None:
                continue
            if self._config.mode == "layerwise" and chunk.samples:
                yield outgoing, layer + 1
            elif self._config.mode == "chunkwise" and layer == self._cache.layout.num_layers - 1:
                full_blocks = (chunk.start + chunk.num_tokens) // self._cache.block_size
                assert self._blocks_per_part is not None
                yield outgoing, self._num_parts(outgoing) if chunk.samples else full_blocks // self._blocks_per_part

    def _num_parts(self, outgoing: Outgoing) -> int:
        assert outgoing.sequence is not None
        if self._blocks_per_part is None:
            return self._cache.layout.num_layers
        return -(-len(outgoing.sequence.block_table) // self._blocks_per_part)

    def _computed(self, sequence: Sequence) -> None:
        """The prompt is computed: every part may leave."""
        outgoing = self._outgoing[sequence.request_id]
        outgoing.computed_ns = time.perf_counter_ns()
        self._parts_done(outgoing, self._num_parts(outgoing))

    def send_first(self, output: Output, end_ns: int) -> None:
        """The destination learns token 0; it admits the request when that and all KV are there."""
        request_id, sampled = output.sequence.request_id, output.sampled
        peer = self._submits[request_id].peer
        sums = self._checksums(peer, output.sequence)
        self.desk.mailbox.send(peer, FirstToken(request_id, sampled.token, sampled.margin, end_ns, sums))

    def _parts_done(self, outgoing: Outgoing, num_parts: int) -> None:
        if self._one_sided_pull and num_parts > outgoing.parts_ready:
            self.desk.mailbox.send(outgoing.submit.peer, Ready(outgoing.submit.request_id, num_parts))
        outgoing.parts_done(num_parts)

    def _offer_prompt(self, sequence: Sequence) -> None:
        """Of a prompt that has its blocks."""
        self._has_blocks(self._offer(self._submits[sequence.request_id], len(sequence.prompt)), sequence)

    def _offer(self, submit: Submit, input_len: int) -> Outgoing:
        """Ask for blocks; a pull tells its own in ``_has_blocks``, where they are known at the same moment."""
        transfer_seq = self._transfer_seq.get(submit.peer, 0)
        self._transfer_seq[submit.peer] = transfer_seq + 1
        outgoing = Outgoing(submit, transfer_seq)
        self._outgoing[submit.request_id] = outgoing
        if self._config.direction == "push":
            self._send_offer(outgoing, -(-input_len // self._cache.block_size), [])
        return outgoing

    def _has_blocks(self, outgoing: Outgoing, sequence: Sequence) -> None:
        """The prompt's blocks are taken: a pull can be offered, an accepted push can start."""
        outgoing.sequence = sequence
        if self._config.direction == "pull":
            self._send_offer(outgoing, len(sequence.block_table), sequence.block_table)
        elif outgoing.accept is not None:
            self._start(outgoing)

    def _send_offer(self, outgoing: Outgoing, num_blocks: int, table: list[int]) -> None:
        s = outgoing.submit
        seq = outgoing.transfer_seq
        offer = Offer(s.request_id, s.prompt, s.output_len, s.seed, seq, num_blocks, table, s.attempt, s.priority)
        self.desk.mailbox.send(s.peer, offer)

    def _start(self, outgoing: Outgoing) -> None:
        """Both block tables are known (else later): plan, and send what is ready."""
        sequence, accept, peer = outgoing.sequence, outgoing.accept, outgoing.submit.peer
        assert accept is not None
        if sequence is None or self._one_sided_pull:  # a source that is read only has to progress
            return
        if self._config.direction == "push" and not self._one_sided_push:
            self.desk.mailbox.send(peer, Announce(outgoing.submit.request_id, sequence.block_table))
        if accept.staged:
            slots = self._slots.take(self._config.pieces_in_flight)
            if slots is None:
                return  # tried again when another transfer gives its slots back
            staged = self.mover.plan_staged(sequence.block_table, accept.table, accept.num_here)
            seq, packer = outgoing.transfer_seq, self.mover.packer(sequence.block_table, len(sequence.prompt))
            outgoing.plan, outgoing.flow = staged, StagedSend(self._transport, peer, packer, staged, seq, slots)
        else:
            plan = self.mover.plan(sequence.block_table, accept.table, accept.num_here)
            outgoing.plan, outgoing.flow = plan, self._flow(outgoing, plan)
        outgoing.started_ns = time.perf_counter_ns()
        outgoing.parts_done(outgoing.parts_ready)
        outgoing.flow.advance()

    def _flow(self, outgoing: Outgoing, plan: Plan) -> SendFlow | WriteFlow:
        window, peer = self._config.pieces_in_flight, outgoing.submit.peer
        if self._one_sided_push:
            return WriteFlow(self._transport, peer, plan.source, plan.destination, window)
        return SendFlow(self._transport, peer, plan.source, outgoing.transfer_seq, window, plan.part_ends)

    def _ended(self, outgoing: Outgoing) -> None:
        """Everything has left. Whoever waits for staging slots gets these; a written request is told to its peer."""
        outgoing.ended = True
        if isinstance(outgoing.flow, StagedSend):
            outgoing.flow.give_back(self._slots)
            waiting = [o for o in self._outgoing.values() if o.accept is not None and o.flow is None]
            for other in waiting:
                self._start(other)
        if self._one_sided_push:
            landed = Landed(outgoing.submit.request_id, self.desk.clock.now_ns())
            self.desk.mailbox.send(outgoing.submit.peer, landed)
        if outgoing.release is not None:
            self._released(outgoing, outgoing.release)

    def _released(self, outgoing: Outgoing, release: Release) -> None:
        """The decode rank has it: write the bill, and free the blocks."""
        assert outgoing.sequence is not None
        request_id, flow, plan = outgoing.submit.request_id, outgoing.flow, outgoing.plan
        begin_ns, num_pieces = release.begin_ns, release.num_pieces
        if flow is not None:
            assert flow.begin_ns is not None
            assert plan is not None
            begin_ns, num_pieces = self.desk.clock.at(flow.begin_ns), self._num_pieces(outgoing)
        self.desk.stamp(request_id, Stage.TRANSFER_BEGIN, begin_ns)
        self.desk.rows.write(
            TransferRow(
                block=self.desk.block,
                request_id=request_id,
                src_rank=self.desk.rank,
                dst_rank=outgoing.submit.peer,
                mode=self._config.mode,
                direction=self._config.direction,
                staged=release.staged,
                num_pieces=num_pieces,
                payload_bytes=self._payload_bytes(outgoing),
                reserved_ns=release.reserved_ns,
                begin_ns=begin_ns,
                end_ns=release.end_ns,
                num_inflight=release.num_inflight,
                verified=release.verified,
            )
        )
        del self._outgoing[request_id], self._submits[request_id]
        self.engine.scheduler.release(outgoing.sequence)
        if outgoing.undo is not None:  # it was cancelled while the release was under way: nothing else is to come
            self.desk.confirm(request_id, outgoing.undo.attempt, outgoing.undo.stage)

    def _num_pieces(self, outgoing: Outgoing) -> int:
        assert outgoing.plan is not None
        return outgoing.plan.part_ends[-1]

    def _payload_bytes(self, outgoing: Outgoing) -> int:
        assert outgoing.sequence is not None
        num_here = outgoing.accept.num_here if outgoing.accept is not None else 0
        return self.mover.wire_bytes(len(outgoing.sequence.block_table) - num_here)

    def _checksums(self, peer: int, sequence: Sequence) -> bytes:
        """The checksums of the request's KV where this transfer is to be verified, else nothing."""
        wanted = self._config.verify == "always" or (self._config.verify == "once" and peer not in self._verified)
        if not wanted:
            return b""
        self._verified.add(peer)
        return self.mover.landed_checksums(sequence.block_table, len(sequence.prompt)).tobytes()


def _stage(outgoing: Outgoing) -> str:
    """Where a hand-off stands at its source, in words."""
    peer = f"rank {outgoing.submit.peer}"
    if outgoing.accept is None:
        return f"in prefill, {peer} was offered its KV" if not outgoing.computed_ns else f"waits for blocks of {peer}"
    if outgoing.ended:
        return f"its KV has left for {peer}"
    return f"its KV moves to {peer}"
