"""The decode worker: pulls offered KV into free blocks, admits the request, and runs one step for the whole batch."""

from __future__ import annotations

import time
from collections import deque
from typing import ClassVar

import numpy as np

from xpyd.kv.checksum import checksums, mismatches
from xpyd.kv.plan import plan_request
from xpyd.model.sampling import Sampled
from xpyd.placement import Role
from xpyd.request import Stage
from xpyd.scheduler.base import Sequence
from xpyd.transport.base import Transport
from xpyd.transport.flow import RecvFlow
from xpyd.worker.base import Desk, WorkerError
from xpyd.worker.engine import Engine, Output
from xpyd.worker.handoff import Incoming, TransferConfig
from xpyd.worker.messages import Accept, AnyMessage, FirstToken, Offer, Release, unpack_prompt
from xpyd.worker.mover import MovingWorker


class DecodeWorker(MovingWorker):
    role: ClassVar[Role] = Role.DECODE

    def __init__(
        self, engine: Engine, desk: Desk, drain_timeout_s: float, transport: Transport, config: TransferConfig
    ) -> None:
        super().__init__(engine, desk, drain_timeout_s, transport, config)
        self._incoming: dict[int, Incoming] = {}
        self._offers: deque[Incoming] = deque()  # not yet accepted: waiting for free blocks, first come first served

    def handle(self, source: int, message: AnyMessage) -> None:
        match message:
            case Offer():
                incoming = Incoming(source, message)
                self._incoming[message.request_id] = incoming
                self._offers.append(incoming)
            case FirstToken():
                self._incoming[message.request_id].first = message
            case _:
                raise AssertionError(f"rank {source} sent {type(message).__name__} to a decode worker")

    def move(self) -> bool:
        busy = self._pull()
        for incoming in list(self._incoming.values()):
            if incoming.landed_ns is not None and incoming.first is not None:
                self._admit(incoming, incoming.first, incoming.landed_ns)
                busy = True
        return busy

    def on_layer(self, layer: int) -> None:
        """Between layers: messages and KV move, but the batch of the running step stays as it is."""
        self.receive()
        self._pull()

    def committed(self, outputs: list[Output], finished: list[Sequence], end_ns: int) -> None:
        self.emit(outputs, end_ns)
        for sequence in finished:
            self.engine.scheduler.release(sequence)

    @property
    def quiet(self) -> bool:
        return super().quiet and not self._incoming

    def unfinished(self) -> str:
        return f"{super().unfinished()}, {len(self._incoming)} hand-offs not admitted: {sorted(self._incoming)}"

    def _pull(self) -> bool:
        busy = self._transport.progress()
        while self._offers and self._accept(self._offers[0]):
            self._offers.popleft()
            busy = True
        for incoming in self._incoming.values():
            if incoming.flow is not None and incoming.landed_ns is None:
                if incoming.flow.advance():
                    incoming.landed_ns = self.desk.clock.now_ns()
                    busy = True
                else:
                    what = f"receiving the KV of request {incoming.offer.request_id} from rank {incoming.source}"
                    self.check_time(incoming.accepted_ns, what)
        return busy

    def _accept(self, incoming: Incoming) -> bool:
        """Take an offer if its blocks, and one more for every running request, are free: this is the back-pressure."""
        offer = incoming.offer
        table = self.engine.scheduler.reserve(len(offer.table))
        if table is None:
            return False
        plan = plan_request(self._cache.layout, offer.table, table, self._config.max_piece_bytes)
        incoming.table, incoming.plan = table, plan
        incoming.num_inflight = sum(1 for i in self._incoming.values() if i.flow is not None and i.landed_ns is None)
        incoming.flow = RecvFlow(self._transport, incoming.source, plan.destination, offer.transfer_seq)
        incoming.accepted_ns = time.perf_counter_ns()
        self.ledger_bytes += sum(span.nbytes for span in plan.destination)
        self.desk.mailbox.send(incoming.source, Accept(offer.request_id, table))
        return True

    def _admit(self, incoming: Incoming, first: FirstToken, landed_ns: int) -> None:
        """All KV is here: verify, release the source, join the decode batch."""
        offer = incoming.offer
        verified = self._verify(incoming, first)
        prompt = unpack_prompt(offer.prompt)
        sequence = Sequence(
            offer.request_id, prompt, offer.output_len, [first.token], len(prompt), incoming.table, offer.seed
        )
        self.engine.scheduler.admit(sequence)
        now_ns = self.desk.clock.now_ns()
        self.desk.stamp(offer.request_id, Stage.TRANSFER_END, landed_ns)
        self.desk.stamp(offer.request_id, Stage.DECODE_ADMIT, now_ns)
        self.desk.mailbox.send(incoming.source, Release(offer.request_id, landed_ns, incoming.num_inflight, verified))
        if self._config.first_token == "decode":
            self.emit([Output(sequence, 0, Sampled(first.token, first.margin))], now_ns)
        del self._incoming[offer.request_id]

    def _verify(self, incoming: Incoming, first: FirstToken) -> bool:
        """Compare the checksums of every layer and block; raises WorkerError that names what differs."""
        if not first.checksums:
            return False
        found = checksums(self._cache.buffer, self._cache.layout, incoming.table)
        expected = np.frombuffer(first.checksums, dtype=found.dtype).reshape(found.shape)
        wrong = mismatches(expected, found)
        if wrong:
            raise WorkerError(
                f"rank {self.desk.rank} (decode): KV of request {first.request_id} from rank {incoming.source} "
                f"differs at (layer, block) {wrong[:8]}{' ...' if len(wrong) > 8 else ''}, {len(wrong)} in all"
            )
        return True
