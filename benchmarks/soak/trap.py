"""The traps of a rank: it fails in mid-transfer, and every offer that finds its decode pool exhausted is counted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.soak.trial import Order, fault_file, ready_file
from xpyd.kv.layout import Span
from xpyd.transport.base import Ticket, Transport
from xpyd.worker.destination import DestinationEnd
from xpyd.worker.handoff import Incoming, Outgoing
from xpyd.worker.messages import Accept
from xpyd.worker.source import SourceEnd

BLOCK_BYTES = 32768  # of the pool: real pieces on the wire, whatever the model says
PIECE_S = 1e-3  # a slow wire: hand-offs take long enough to be cut
CUT_PATIENCE_S = 5.0


class Trap:
    """Slows a rank's transport, and makes the rank fail after so many bytes of a block have gone through it.

    A late one fails in ``before``'s call instead.
    """

    def __init__(self, transport: Transport, folder: Path, rank: int, order: Order) -> None:
        self._transport, self._folder, self._rank, self._order = transport, folder, rank, order
        self._limit_bytes: int | None = None
        self._late = False
        self._generator = np.random.default_rng((order.seed, rank))
        self._accepted_bytes = 0
        if transport.capabilities.one_sided_read:
            self._count_accepts()
        self._progress, self._send = transport.progress, transport.send
        transport.progress = self.progress  # type: ignore[method-assign]
        transport.send = self.send  # type: ignore[method-assign]

    def arm(self) -> None:
        """For the block that begins: from a few pieces to several requests into it, or at its end."""
        if self._order.late:
            self._late = True
            return
        self._limit_bytes = self._moved() + int(self._generator.integers(3, 60)) * BLOCK_BYTES

    def disarm(self) -> None:
        """The block is over, and little has gone this way: no fault then."""
        self._limit_bytes, self._late = None, False

    def before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, in which an armed rank fails first."""

        def failing(*arguments: Any) -> Any:
            if self._late:
                self._late = False
                self._fail()
            return call(*arguments)

        return failing

    def send(self, peer: int, spans: Sequence[Span], tag: int) -> Ticket:
        time.sleep(PIECE_S)
        return self._send(peer, spans, tag)

    def progress(self) -> bool:
        moved = self._progress()
        if self._limit_bytes is not None and self._moved() >= self._limit_bytes:
            self._limit_bytes = None
            self._fail()
        return moved

    def _fail(self) -> None:
        if self._order.fault == "cut":
            ready_file(self._folder, self._rank).touch()
            deadline = time.monotonic() + CUT_PATIENCE_S  # the driver cuts the link, and says when
            while not fault_file(self._folder, self._rank).exists() and time.monotonic() < deadline:
                time.sleep(PIECE_S)
            return
        fault_file(self._folder, self._rank).write_text(f"{time.perf_counter_ns()} {os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL if self._order.fault == "kill" else signal.SIGSTOP)

    def _moved(self) -> int:
        t = self._transport
        return t.sent_bytes + t.received_bytes + t.written_bytes + self._accepted_bytes

    def _count_accepts(self) -> None:
        """A source that is read from sees no bytes: what was accepted is about to be read."""
        answered = SourceEnd._answered

        def counting(source: Any, outgoing: Outgoing, message: Any) -> None:
            if isinstance(message, Accept):
                self._accepted_bytes += len(message.table) * BLOCK_BYTES
            answered(source, outgoing, message)

        SourceEnd._answered = counting  # type: ignore[method-assign, assignment]


class WaitCount:
    """Counts the offers that found no free blocks in this rank's decode pool: every one of them is an exhaustion."""

    def __init__(self) -> None:
        self.num_waits = 0
        self._waiting: set[int] = set()
        accept = DestinationEnd._accept

        def counting(worker: Any, incoming: Incoming) -> bool:
            taken = accept(worker, incoming)
            request_id = incoming.offer.request_id
            scheduler = worker.engine.scheduler
            if not taken and incoming.offer.num_blocks > scheduler.num_free_blocks and request_id not in self._waiting:
                self._waiting.add(request_id)
                self.num_waits += 1
            elif taken:
                self._waiting.discard(request_id)
            return taken

        DestinationEnd._accept = counting  # type: ignore[method-assign, assignment]
