"""Who moves the bytes: one interface for the transports of the suite and for what they are compared with."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any, ClassVar

from benchmarks.transfer.cases import REQUESTS_AT_ONCE, Case, Stream, Work
from xpyd.kv.layout import Span
from xpyd.transport.base import Transport, TransportError
from xpyd.transport.flow import ReadFlow, RecvFlow, SendFlow
from xpyd.units import NS_PER_S

GO_TAG, END_TAG = 7101, 7102
TIMEOUT_S = 120.0
SMALL_BYTES, NUM_SMALL = 8, 200


class CarrierError(RuntimeError):
    """This carrier cannot be measured here; the message is the reason that the table gives."""


class Carrier(ABC):
    """Moves the spans of a case between this rank and each of its peers; made and used collectively."""

    name: str
    verifiable: ClassVar[bool] = True  # it writes into the pool

    def takes(self, case: Case, num_peers: int) -> bool:
        """Whether it can move this case at all; the same answer on every rank."""
        return True

    @abstractmethod
    def send(self, work: Work) -> None:
        """The source's side: wait for "go" of each destination, then send; returns when all has left."""

    @abstractmethod
    def receive(self, work: Work) -> float:
        """The destination's side; seconds from its "go" to the last byte of the last source."""

    def small(self, is_source: bool) -> float | None:
        """Seconds that one small message takes to the first peer; None on ranks, and for carriers, that cannot say."""
        return None

    def close(self) -> None:
        """Release what is held; nothing, unless a carrier says otherwise."""
        return


class TransportCarrier(Carrier):
    """A transport of the suite, driven as in a hand-off: pieces in flight, no thread, reads where it is one-sided."""

    def __init__(self, transport: Transport, comm: Any, peers: Sequence[int], spin: bool) -> None:
        """``spin``: never yield the core; right where every rank has one to itself."""
        self.name = transport.name
        self._transport, self._comm, self._peers, self._spin = transport, comm, peers, spin
        self._two_sided = transport.capabilities.two_sided
        self._call = 0

    @property
    def route(self) -> str:
        return self._transport.route(self._peers[0])

    def send(self, work: Work) -> None:
        if not self._two_sided:
            self._serve_reads(work.peers)
            return
        self._call += 1
        flows = []
        for stream in work.streams:
            window = work.case.pattern.num_flying
            flows.append(SendFlow(self._transport, stream.peer, stream.source, self._seq(stream), window))
            flows[-1].release(len(stream.source))
        for peer in work.peers:
            self._comm.recv(source=peer, tag=GO_TAG)
        self._run(flows)

    def receive(self, work: Work) -> float:
        if not self._two_sided:
            return self._read(work)
        self._call += 1
        flows = [
            RecvFlow(self._transport, stream.peer, stream.destination, self._seq(stream)) for stream in work.streams
        ]
        begin_ns = perf_counter_ns()
        for peer in work.peers:
            self._comm.send(None, dest=peer, tag=GO_TAG)
        self._run(flows)
        return _seconds_since(begin_ns)

    def small(self, is_source: bool) -> float | None:
        return self._ping_pong(is_source) if self._two_sided else self._small_reads(is_source)

    def close(self) -> None:
        self._transport.close()

    def _read(self, work: Work) -> float:
        flows = []
        for stream in work.streams:
            window = work.case.pattern.num_flying
            flows.append(ReadFlow(self._transport, stream.peer, stream.source, stream.destination, window))
            flows[-1].release(len(stream.source))
        begin_ns = perf_counter_ns()
        self._run(flows)
        seconds = _seconds_since(begin_ns)
        for peer in work.peers:
            self._comm.send(None, dest=peer, tag=END_TAG)
        return seconds

    def _serve_reads(self, peers: Sequence[int]) -> None:
        """Progress until every destination has read all: reads that software emulates need the source."""
        ends = [self._comm.irecv(source=peer, tag=END_TAG) for peer in peers]
        self._drive(lambda: all(end.test()[0] for end in ends))

    def _ping_pong(self, is_source: bool) -> float:
        span = Span(0, SMALL_BYTES)
        begin_ns = perf_counter_ns()
        for turn in range(2 * NUM_SMALL):
            post = self._transport.send if is_source == (turn % 2 == 0) else self._transport.recv
            self._drive(post(self._peers[0], [span], turn).done)
        return _seconds_since(begin_ns) / (2 * NUM_SMALL)

    def _small_reads(self, is_source: bool) -> float | None:
        if is_source:
            self._serve_reads(self._peers[:1])
            return None
        span = [Span(0, SMALL_BYTES)]
        begin_ns = perf_counter_ns()
        for _ in range(NUM_SMALL):
            self._drive(self._transport.read(self._peers[0], span, span).done)
        seconds = _seconds_since(begin_ns) / NUM_SMALL
        self._comm.send(None, dest=self._peers[0], tag=END_TAG)
        return seconds

    def _run(self, flows: Sequence[SendFlow | RecvFlow | ReadFlow]) -> None:
        def finished() -> bool:
            for flow in flows:
                flow.advance()
            return all(flow.done for flow in flows)

        self._drive(finished)

    def _drive(self, finished: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not finished():
            if not self._transport.progress() and not self._spin:
                os.sched_yield()
            if time.monotonic() > deadline:
                raise TransportError(f"{self.name}: not done after {TIMEOUT_S:.0f} s")

    def _seq(self, stream: Stream) -> int:
        """The same at both ends: ranks tell apart what goes between other pairs."""
        return self._call * REQUESTS_AT_ONCE + stream.request


def _seconds_since(begin_ns: int) -> float:
    return (perf_counter_ns() - begin_ns) / NS_PER_S
