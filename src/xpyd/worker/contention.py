"""Contention between a hand-off and the work beside it: each alone, then both together, in real engine steps.

The destination decodes a fixed batch and receives; the source sends, idle or while it prefills. KV moves between
layers and between steps on the workers' own threads, as in the hand-off. Points come in a fresh order every repeat.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from xpyd.kv.plan import Plan, plan_request
from xpyd.model.runner import ModelRunner
from xpyd.model.segment import Segment
from xpyd.records import ReceiptRow, ReceivingGapRow
from xpyd.transport.base import Transport, TransportError
from xpyd.transport.flow import ReadFlow, RecvFlow, SendFlow
from xpyd.units import NS_PER_S
from xpyd.worker.interference import decode_batch
from xpyd.worker.load import Load, SourceStep
from xpyd.worker.mover import while_moving
from xpyd.worker.sweeps import ContentionSweep

READY_TAG, GO_TAG, LANDED_TAG = 7006, 7007, 7008
IDLE_SLEEP_S = 50e-6  # as an idle worker's
TIMEOUT_S = 60.0


def loads(sweep: ContentionSweep) -> list[Load]:
    """Every batch (0: none) without and with a hand-off of each size, from a source that idles or prefills."""
    return [
        Load(prompt, batch, prefill)
        for prompt in (0, *sweep.prompt_tokens)
        for batch in (0, *sweep.num_decode_seqs)
        for prefill in (0, sweep.prefill_tokens)
        if prompt or batch
    ]


class Served:
    """The source's end where the destination reads by itself: progress, until it says that all has landed."""

    def __init__(self, comm: Any, peer: int) -> None:
        self._landed = comm.irecv(source=peer, tag=LANDED_TAG)
        self.done = False

    def advance(self) -> bool:
        """True once, when all has landed."""
        before = self.done
        self.done = self.done or bool(self._landed.test()[0])
        return self.done and not before


class ContentionProbe:
    """One end of one pair. Both ends call ``measure``; the destination writes the rows.

    Raises TransportError when a hand-off is not done within a minute.
    """

    def __init__(
        self, runner: ModelRunner, transport: Transport, comm: Any, peer: int, sends: bool, sweep: ContentionSweep
    ) -> None:
        self._runner = runner
        self._transport = transport
        self._comm = comm
        self._peer = peer
        self._sends = sends
        self._sweep = sweep
        self._seq = 0

    def measure(self, write: Callable[[Any], None], points: Sequence[Load] | None = None) -> None:
        """Play ``points``, by default all of the sweep; ``write`` gets rows, and at the source ``SourceStep``."""
        points = loads(self._sweep) if points is None else points
        generator = np.random.default_rng(0)
        for repeat in range(-1, self._sweep.num_repeats):  # -1: warm-up
            for which in generator.permutation(len(points)):
                rows = self._source(points[which], repeat) if self._sends else self._destination(points[which], repeat)
                if repeat >= 0:
                    for row in rows:
                        write(row)

    def _source(self, load: Load, repeat: int) -> list[Any]:
        """Send when the destination says "go" (nothing, where it decodes alone); prefill meanwhile where asked to."""
        self._comm.send(None, dest=self._peer, tag=READY_TAG)  # no step of the load before runs any more
        go = self._comm.irecv(source=self._peer, tag=GO_TAG)
        flow: SendFlow | Served | None = None

        def poll(_layer: int = 0) -> None:
            nonlocal flow
            if flow is None and go.test()[0]:
                flow = self._leaving(load)
            if flow is not None:
                leaving = flow
                while_moving(lambda: self._transport.progress() | leaving.advance())

        prefill = self._prefill(load) if load.prefill_tokens else []
        steps: list[Any] = []
        deadline = time.monotonic() + TIMEOUT_S
        while flow is None or not flow.done:
            begin_ns = perf_counter_ns()
            poll()
            if prefill:
                self._runner.run(prefill, poll)
                beside = flow is not None and load.prompt_tokens > 0
                steps.append(SourceStep(load, repeat, beside, (perf_counter_ns() - begin_ns) / NS_PER_S))
            elif flow is None:
                time.sleep(IDLE_SLEEP_S)
            self._check(deadline, f"sending to rank {self._peer}")
        self._seq += 1
        return steps

    def _leaving(self, load: Load) -> SendFlow | Served:
        """The source's end of a hand-off, or of none."""
        if load.prompt_tokens and not self._transport.capabilities.two_sided:
            return Served(self._comm, self._peer)
        plan = self._plan(load) if load.prompt_tokens else Plan([], [], [])
        window = self._sweep.pieces_in_flight
        flow = SendFlow(self._transport, self._peer, plan.source, self._seq, window, plan.part_ends)
        flow.release(len(plan.source))
        return flow

    def _arriving(self, plan: Plan) -> RecvFlow | ReadFlow:
        """The destination's end; what it reads itself is final already."""
        if self._transport.capabilities.two_sided:
            return RecvFlow(self._transport, self._peer, plan.destination, self._seq, plan.part_ends)
        window = self._sweep.pieces_in_flight
        flow = ReadFlow(self._transport, self._peer, plan.source, plan.destination, window)
        flow.release(len(plan.source))
        return flow

    def _destination(self, load: Load, repeat: int) -> list[Any]:
        self._comm.recv(source=self._peer, tag=READY_TAG)
        rows = self._receive(load, repeat) if load.prompt_tokens else self._decode_alone(load, repeat)
        self._seq += 1
        return rows

    def _decode_alone(self, load: Load, repeat: int) -> list[Any]:
        gaps = [self._step(load, i) for i in range(self._sweep.num_gaps + 1)]
        self._comm.send(None, dest=self._peer, tag=GO_TAG)  # the source may stop
        return list(self._gaps(load, repeat, gaps[1:]))

    def _receive(self, load: Load, repeat: int) -> list[Any]:
        if load.num_decode_seqs:
            self._step(load, 0)  # the step before: caches are the decode batch's own when the hand-off begins
        plan = self._plan(load)
        flow = self._arriving(plan)
        landed_ns: int | None = None

        def poll(_layer: int = 0) -> None:
            nonlocal landed_ns
            self._transport.progress()
            flow.advance()
            if landed_ns is None and flow.done:
                landed_ns = perf_counter_ns()

        begin_ns = perf_counter_ns()
        self._comm.send(None, dest=self._peer, tag=GO_TAG)
        gaps: list[float] = []
        deadline = time.monotonic() + TIMEOUT_S
        while landed_ns is None:
            if load.num_decode_seqs:
                gaps.append(self._step(load, len(gaps) + 1, poll))
            else:
                poll()
            self._check(deadline, f"receiving from rank {self._peer}")
        if not self._transport.capabilities.two_sided:
            self._comm.send(None, dest=self._peer, tag=LANDED_TAG)
        receipt = ReceiptRow(
            src_rank=self._peer,
            dst_rank=self._comm.rank,
            num_decode_seqs=load.num_decode_seqs,
            prefill_tokens=load.prefill_tokens,
            payload_bytes=sum(span.nbytes for span in plan.destination),
            num_pieces=len(plan.destination),
            repeat=repeat,
            seconds=(landed_ns - begin_ns) / NS_PER_S,
        )
        return [receipt, *self._gaps(load, repeat, gaps, receipt.payload_bytes)]

    def _step(self, load: Load, index: int, poll: Callable[[int], None] | None = None) -> float:
        """One decode step, and KV moved before it and between its layers; seconds from commit to commit."""
        begin_ns = perf_counter_ns()
        if poll is not None:
            poll(0)
        sweep = self._sweep
        size = self._runner.cache.block_size
        position = sweep.context_len + index % sweep.num_gaps
        reach = sweep.context_len + sweep.num_gaps
        first = self._blocks(max(sweep.prompt_tokens))
        batch = decode_batch(self._runner.spec.vocab_size, size, load.num_decode_seqs, position, reach, first)
        self._runner.run(batch, poll)
        return (perf_counter_ns() - begin_ns) / NS_PER_S

    def _gaps(self, load: Load, repeat: int, gaps: list[float], payload_bytes: int = 0) -> list[ReceivingGapRow]:
        return [
            ReceivingGapRow(
                rank=self._comm.rank,
                num_decode_seqs=load.num_decode_seqs,
                prefill_tokens=load.prefill_tokens,
                payload_bytes=payload_bytes,
                repeat=repeat,
                index=index,
                gap_s=gap_s,
            )
            for index, gap_s in enumerate(gaps)
        ]

    def _plan(self, load: Load) -> Plan:
        """The hand-off of a prompt in the pool's first blocks, on both ends."""
        table = range(self._blocks(load.prompt_tokens))
        return plan_request(self._runner.cache.layout, table, table, self._sweep.max_piece_bytes)

    def _prefill(self, load: Load) -> list[Segment]:
        first = self._blocks(max(self._sweep.prompt_tokens))
        table = list(range(first, first + self._blocks(load.prefill_tokens)))
        prompt = [token % self._runner.spec.vocab_size for token in range(load.prefill_tokens)]
        return [Segment(prompt, 0, table, 0, 0, False)]

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._runner.cache.block_size)

    def _check(self, deadline: float, what: str) -> None:
        if time.monotonic() > deadline:
            raise TransportError(f"rank {self._comm.rank}: {what} is not done after {TIMEOUT_S:.0f} s")
