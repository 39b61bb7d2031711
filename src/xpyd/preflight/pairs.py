"""Probes of prefill-decode pairs, over the KV transport itself: connect, echo, bandwidth. Each has a bound.

A pair that does not answer is an outcome, not an exception: both ranks end within the bound and go on to their next
pairs. Signals between the two ("go", "ready") travel over MPI, looked for and never waited for.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable, Collection, Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np

from xpyd.kv.layout import Span
from xpyd.preflight.options import CheckConfig
from xpyd.preflight.outcome import WRONG_CHECKSUM, Pair, Side
from xpyd.transport.base import Bytes, Transport, TransportError
from xpyd.units import NS_PER_S, format_bytes

SIGNAL_TAG = 7005
ECHO_TAG = 1
WINDOW_TAG = 1 << 16  # pieces count up from here, below xpyd.transport.base.TAG_LIMIT
SETTLE_SLEEP_S = 1e-3


def rounds(sources: Sequence[int], destinations: Sequence[int]) -> list[list[Pair]]:
    """Every pair once, in rounds where no rank is in two pairs: silent pairs of a round cost one bound together."""
    few, many = sorted((sources, destinations), key=len)
    turns = [[(rank, many[(i + turn) % len(many)]) for i, rank in enumerate(few)] for turn in range(len(many))]
    if few is sources:
        return turns
    return [[(source, destination) for destination, source in turn] for turn in turns]


def pattern(pair: Pair, nbytes: int) -> Bytes:
    """Bytes that both ends of a pair can make, and no other pair has."""
    return np.random.default_rng(pair).integers(0, 256, nbytes, np.uint8)


class PairProbe:
    """One rank's side of every probe. ``buffer``: shape [check.buffer_bytes], registered with ``transport``."""

    def __init__(self, transport: Transport, comm: Any, buffer: Bytes, check: CheckConfig) -> None:
        self.transport = transport
        transport.connect_timeout_s = check.timeout_s
        self._comm = comm
        self._buffer = buffer
        self._check = check
        self._said: list[Any] = []  # signals on their way
        self._kept: list[Any] = []  # what was posted to a peer that went silent: its memory may still be written

    def meet(self, pair: Pair, address: bytes) -> Side:
        """Connect and echo; both ranks of the pair call this."""
        peer = self._peer(pair)
        try:
            self.transport.connect({peer: address})
            route = self.transport.route(peer)
        except TransportError as error:
            return Side(str(error).partition("; ")[0])  # the remedy is the judges' to say
        try:
            return Side("", route, self._echo(pair))
        except TransportError as error:
            return Side(str(error), route)

    def stream(self, pair: Pair) -> Side:
        """Bandwidth windows, timed at the destination from "go" to the last byte; both ranks of the pair call this."""
        try:
            if self._comm.rank == pair[0]:
                self._stream_out(pair)
                return Side()
            return Side(seconds=self._stream_in(pair))
        except TransportError as error:
            return Side(str(error))

    def settle(self) -> None:
        """A barrier that keeps the transport moving: a peer may still need this rank to finish. Collective."""
        settle(self._comm, self.transport)

    def _echo(self, pair: Pair) -> tuple[float, ...]:
        """There and back, checked at both ends; at the source the seconds of each."""
        nbytes = self._check.echo_bytes
        there, back = Span(0, nbytes), Span(nbytes, nbytes)
        expected = pattern(pair, nbytes)
        is_source, peer = self._comm.rank == pair[0], self._peer(pair)
        landing = self._view(back if is_source else there)
        seconds: list[float] = []
        intact = True
        for _ in range(self._check.num_repeats):
            landing[:] = 0
            if is_source:
                self._view(there)[:] = expected
                begin_ns = perf_counter_ns()
                self._give(peer, [there], ECHO_TAG)
                self._take(peer, [back], [there], ECHO_TAG)
                seconds.append((perf_counter_ns() - begin_ns) / NS_PER_S)
            else:
                self._take(peer, [there], [there], ECHO_TAG)
                self._give(peer, [there], ECHO_TAG)
            intact &= zlib.crc32(landing.data) == zlib.crc32(expected.data)
        if not intact:  # said at the end: the peer is not left alone in mid-echo
            where = "back at the source" if is_source else "at the destination"
            raise TransportError(f"{format_bytes(nbytes)} arrived {where} with {WRONG_CHECKSUM}")
        return tuple(seconds)

    def _stream_out(self, pair: Pair) -> None:
        peer = self._peer(pair)
        while self._hear(peer):
            self._give(peer, self._pieces(), WINDOW_TAG)

    def _stream_in(self, pair: Pair) -> tuple[float, ...]:
        """The seconds of each window; as many as asked for, fewer where the link is so slow that they take long."""
        peer = self._peer(pair)
        begun, seconds = time.monotonic(), list[float]()
        while len(seconds) < self._check.num_repeats and time.monotonic() - begun < self._check.timeout_s / 2:
            tickets = self._post_receives(peer, self._pieces(), WINDOW_TAG)
            begin_ns = perf_counter_ns()
            self._say(peer, True)
            self._finish_take(peer, tickets, self._pieces(), self._pieces())
            seconds.append((perf_counter_ns() - begin_ns) / NS_PER_S)
        self._say(peer, False)
        return tuple(seconds)

    def _pieces(self) -> list[Span]:
        size = self._check.piece_bytes
        return [Span(i * size, size) for i in range(self._check.num_pieces)]

    def _give(self, peer: int, spans: Sequence[Span], tag: int) -> None:
        """Let ``peer`` have ``spans``: sent, or where the transport reads one-sided, offered until it has them."""
        if self.transport.capabilities.two_sided:
            tickets = [self.transport.send(peer, [span], tag + i) for i, span in enumerate(spans)]
            self._finish(peer, tickets)
            return
        self._say(peer, "ready")
        self._hear(peer)

    def _take(self, peer: int, here: Sequence[Span], there: Sequence[Span], tag: int) -> None:
        self._finish_take(peer, self._post_receives(peer, here, tag), here, there)

    def _post_receives(self, peer: int, here: Sequence[Span], tag: int) -> list[Any]:
        if not self.transport.capabilities.two_sided:
            return []
        return [self.transport.recv(peer, [span], tag + i) for i, span in enumerate(here)]

    def _finish_take(self, peer: int, tickets: list[Any], here: Sequence[Span], there: Sequence[Span]) -> None:
        if self.transport.capabilities.two_sided:
            self._finish(peer, tickets)
            return
        self._hear(peer)
        self._finish(peer, [self.transport.read(peer, there, here)])
        self._say(peer, "done")

    def _finish(self, peer: int, tickets: Collection[Any]) -> None:
        try:
            self._await(peer, lambda: all(ticket.done() for ticket in tickets))
        except TransportError:
            self._kept += tickets
            raise

    def _say(self, peer: int, signal: Any) -> None:
        self._said = [request for request in self._said if not request.Test()]
        self._said.append(self._comm.isend(signal, dest=peer, tag=SIGNAL_TAG))

    def _hear(self, peer: int) -> Any:
        """The next signal of ``peer``."""
        request = self._comm.irecv(source=peer, tag=SIGNAL_TAG)
        heard: list[Any] = []

        def arrived() -> bool:
            done, signal = request.test()
            if done:
                heard.append(signal)
            return bool(done)

        self._await(peer, arrived)
        return heard[0]

    def _await(self, peer: int, arrived: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._check.timeout_s
        while not arrived():
            if not self.transport.progress():
                os.sched_yield()
            if time.monotonic() > deadline:
                raise TransportError(f"rank {peer} did not answer within {self._check.timeout_s:.4g} s")

    def _peer(self, pair: Pair) -> int:
        return pair[1] if self._comm.rank == pair[0] else pair[0]

    def _view(self, span: Span) -> Bytes:
        return self._buffer[span.offset : span.offset + span.nbytes]


def settle(comm: Any, transport: Transport | None) -> None:
    """See ``PairProbe.settle``; ranks without a transport take part, too."""
    request = comm.Ibarrier()
    while not request.Test():
        if transport is None or not transport.progress():
            time.sleep(SETTLE_SLEEP_S)
