"""The prefill worker: runs prompts, offers their KV, sends it where a decode worker asks for it."""

from __future__ import annotations

import time
from typing import ClassVar

from xpyd.kv.checksum import checksums
from xpyd.kv.plan import plan_request
from xpyd.placement import Role
from xpyd.records import TransferRow
from xpyd.request import Stage
from xpyd.scheduler.base import Sequence, StepPlan
from xpyd.transport.base import Transport
from xpyd.transport.flow import SendFlow
from xpyd.worker.base import Desk
from xpyd.worker.engine import Engine, Output
from xpyd.worker.handoff import Outgoing, TransferConfig
from xpyd.worker.messages import Accept, AnyMessage, FirstToken, Offer, Release, Submit, unpack_prompt
from xpyd.worker.mover import MovingWorker


class PrefillWorker(MovingWorker):
    role: ClassVar[Role] = Role.PREFILL

    def __init__(
        self, engine: Engine, desk: Desk, drain_timeout_s: float, transport: Transport, config: TransferConfig
    ) -> None:
        super().__init__(engine, desk, drain_timeout_s, transport, config)
        self._submits: dict[int, Submit] = {}
        self._outgoing: dict[int, Outgoing] = {}
        self._completing: list[Outgoing] = []  # their last chunk runs in this step: layers become final one by one
        self._transfer_seq: dict[int, int] = {}  # per decode rank
        self._verified: set[int] = set()  # decode ranks whose first transfer of this block is checked

    def handle(self, source: int, message: AnyMessage) -> None:
        match message:
            case Submit():
                sequence = Sequence(message.request_id, unpack_prompt(message.prompt), 1, seed=message.seed)
                if self.add(sequence):
                    self._submits[message.request_id] = message
            case Accept():
                self._start(self._outgoing[message.request_id], message)
            case Release():
                self._released(self._outgoing.pop(message.request_id), message)
            case _:
                raise AssertionError(f"rank {source} sent {type(message).__name__} to a prefill worker")

    def before_run(self, plan: StepPlan) -> None:
        if self._config.mode == "layerwise":
            completing = [chunk.sequence for chunk in plan.prefills if chunk.samples]
            self._completing = [self._offer(s) for s in completing if self._submits[s.request_id].output_len > 1]

    def on_layer(self, layer: int) -> None:
        for outgoing in self._completing:
            outgoing.layers_done(layer + 1)
        self.receive()
        self.move()

    def committed(self, outputs: list[Output], finished: list[Sequence], end_ns: int) -> None:
        self._completing = []
        for output in outputs:
            self.desk.stamp(output.sequence.request_id, Stage.PREFILL_END, end_ns)
        if self._config.first_token == "prefill":
            self.emit(outputs, end_ns)
        else:  # a request of one token never moves, so its token can only leave from here
            self.emit([o for o in outputs if self._submits[o.sequence.request_id].output_len == 1], end_ns)
        for output in outputs:
            if self._submits[output.sequence.request_id].output_len == 1:
                self._submits.pop(output.sequence.request_id)
                self.engine.scheduler.release(output.sequence)
            else:
                self._hand_off(output, end_ns)

    def move(self) -> bool:
        busy = self._transport.progress()
        for outgoing in self._outgoing.values():
            if outgoing.flow is not None and not outgoing.flow.done:
                busy |= outgoing.flow.advance()
                submit = outgoing.submit
                what = f"sending the KV of request {submit.request_id} to rank {submit.peer}"
                self.check_time(outgoing.accepted_ns, what)
        return busy

    @property
    def quiet(self) -> bool:
        return super().quiet and not self._outgoing

    def unfinished(self) -> str:
        return f"{super().unfinished()}, {len(self._outgoing)} hand-offs without release: {sorted(self._outgoing)}"

    def _hand_off(self, output: Output, end_ns: int) -> None:
        """The prompt is computed: every layer may leave, and the decode rank learns token 0."""
        sequence = output.sequence
        outgoing = self._outgoing.get(sequence.request_id) or self._offer(sequence)
        outgoing.layers_done(self._cache.layout.num_layers)
        peer = outgoing.submit.peer
        self.desk.mailbox.send(
            peer,
            FirstToken(
                sequence.request_id, output.sampled.token, output.sampled.margin, end_ns, self._checksums(outgoing)
            ),
        )

    def _offer(self, sequence: Sequence) -> Outgoing:
        submit = self._submits[sequence.request_id]
        transfer_seq = self._transfer_seq.get(submit.peer, 0)
        self._transfer_seq[submit.peer] = transfer_seq + 1
        outgoing = Outgoing(submit, sequence, transfer_seq)
        self._outgoing[sequence.request_id] = outgoing
        offer = Offer(
            sequence.request_id, submit.prompt, submit.output_len, submit.seed, transfer_seq, sequence.block_table
        )
        self.desk.mailbox.send(submit.peer, offer)
        return outgoing

    def _start(self, outgoing: Outgoing, accept: Accept) -> None:
        """The decode rank has posted its receives: send what is ready."""
        layout = self._cache.layout
        plan = plan_request(layout, outgoing.sequence.block_table, accept.table, self._config.max_piece_bytes)
        outgoing.plan = plan
        outgoing.flow = SendFlow(
            self._transport, outgoing.submit.peer, plan.source, outgoing.transfer_seq, self._config.pieces_in_flight
        )
        outgoing.accepted_ns = time.perf_counter_ns()
        outgoing.layers_done(outgoing.layers_ready)
        outgoing.flow.advance()

    def _released(self, outgoing: Outgoing, release: Release) -> None:
        assert outgoing.plan is not None
        assert outgoing.flow is not None
        assert outgoing.flow.begin_ns is not None
        request_id = outgoing.submit.request_id
        begin_ns = self.desk.clock.at(outgoing.flow.begin_ns)
        self.desk.stamp(request_id, Stage.TRANSFER_BEGIN, begin_ns)
        self.desk.rows.write(
            TransferRow(
                block=self.desk.block,
                request_id=request_id,
                src_rank=self.desk.rank,
                dst_rank=outgoing.submit.peer,
                mode=self._config.mode,
                num_pieces=len(outgoing.plan.source),
                payload_bytes=sum(span.nbytes for span in outgoing.plan.source),
                begin_ns=begin_ns,
                end_ns=release.end_ns,
                num_inflight=release.num_inflight,
                verified=release.verified,
            )
        )
        del self._submits[request_id]
        self.engine.scheduler.release(outgoing.sequence)

    def _checksums(self, outgoing: Outgoing) -> bytes:
        """The checksums of the request's KV where this transfer is to be verified, else nothing."""
        peer = outgoing.submit.peer
        wanted = self._config.verify == "always" or (self._config.verify == "once" and peer not in self._verified)
        if not wanted:
            return b""
        self._verified.add(peer)
        return checksums(self._cache.buffer, self._cache.layout, outgoing.sequence.block_table).tobytes()
