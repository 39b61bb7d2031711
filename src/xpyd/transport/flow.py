"""Many spans to or from one peer, a few in flight at a time: what a hand-off or a benchmark posts and waits for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from time import perf_counter_ns

from xpyd.kv.layout import Span
from xpyd.transport.base import TAG_LIMIT, Ticket, Transport, TransportError

SEQ_MASK, MESSAGE_MASK, MESSAGE_BITS = 0x7FFF, 0xFFFF, 16
MIN_TAGS = 1 << 20  # keeps 16 transfers of one source apart


def tag_of(transfer_seq: int, message: int) -> int:
    """The tag of a message, below 2**31. Wraps after 32,768 transfers and 65,536 messages; they also match in order."""
    return (transfer_seq & SEQ_MASK) << MESSAGE_BITS | (message & MESSAGE_MASK)


def tag_mask(tag_upper_bound: int) -> int:
    """The bits of a tag that this MPI takes: MPICH 5 has 29, Open MPI 31, and the standard promises only 15.

    Tags that share these bits pair in posting order. Raises TransportError where there are too few to keep
    transfers apart.
    """
    if tag_upper_bound + 1 < MIN_TAGS:
        raise TransportError(
            f"transport.name=mpi: this MPI has tags up to {tag_upper_bound} (MPI_TAG_UB), {MIN_TAGS - 1} are needed; "
            "choose transport=ucx"
        )
    num_bits = (min(tag_upper_bound, TAG_LIMIT - 1) + 1).bit_length() - 1
    return (1 << num_bits) - 1


class Flow(ABC):
    """What every flow can do when its transfer is not to be ended well."""

    @property
    @abstractmethod
    def flying(self) -> Iterator[Ticket]:
        """The tickets that are posted and not reaped."""

    def abandon(self) -> None:
        """The peer is dropped: end what is in flight where that can be done, and never call ``advance`` again."""
        for ticket in self.flying:
            ticket.cancel()

    @property
    def quiet(self) -> bool:
        """The network touches none of the memory any more."""
        return all(ticket.quiet() for ticket in self.flying)


def message_ends(spans: Sequence[Span], part_ends: Collection[int], max_bytes: int) -> list[int]:
    """The number of spans up to the end of each message: as many of one part as fit ``max_bytes``, at least one.

    Both ends find the same, as their spans have the same lengths.
    """
    ends, nbytes = [], 0
    for index, span in enumerate(spans):
        if nbytes and (nbytes + span.nbytes > max_bytes or index in part_ends):
            ends.append(index)
            nbytes = 0
        nbytes += span.nbytes
    return [*ends, len(spans)] if spans else []


class SendFlow(Flow):
    """Sends ``spans`` in order, at most ``window`` messages in flight, and only spans released so far.

    ``part_ends``: no message waits for a part behind its first span's (see ``kv.plan.Plan``).
    """

    def __init__(
        self,
        transport: Transport,
        peer: int,
        spans: Sequence[Span],
        transfer_seq: int,
        window: int,
        part_ends: Collection[int] = (),
    ) -> None:
        self._transport = transport
        self._peer = peer
        self._spans = spans
        self._ends = message_ends(spans, set(part_ends), transport.message_bytes)
        self._seq = transfer_seq
        self._window = window
        self._released = 0
        self._posted = 0  # messages
        self._flying: deque[Ticket] = deque()
        self.begin_ns: int | None = None  # this rank's perf_counter_ns at the first post

    @property
    def flying(self) -> Iterator[Ticket]:
        return iter(self._flying)

    @property
    def done(self) -> bool:
        return self._posted == len(self._ends) and not self._flying

    def release(self, count: int) -> None:
        """The first ``count`` spans hold their final content and may leave."""
        self._released = max(self._released, count)

    def advance(self) -> bool:
        """Reap what is complete and post what may leave; True when something changed. Raises TransportError."""
        reaped = _reap(self._flying)
        posted = self._posted
        while self._may_leave and len(self._flying) < self._window:
            if self.begin_ns is None:
                self.begin_ns = perf_counter_ns()
            begin, end = self._ends[self._posted - 1] if self._posted else 0, self._ends[self._posted]
            tag = tag_of(self._seq, self._posted)
            self._flying.append(self._transport.send(self._peer, self._spans[begin:end], tag))
            self._posted += 1
        return reaped or self._posted > posted

    @property
    def _may_leave(self) -> bool:
        return self._posted < len(self._ends) and self._ends[self._posted] <= self._released


class RecvFlow(Flow):
    """Receives ``spans``, all posted at once: a message must never wait for its destination. As in ``SendFlow``."""

    def __init__(
        self,
        transport: Transport,
        peer: int,
        spans: Sequence[Span],
        transfer_seq: int,
        part_ends: Collection[int] = (),
    ) -> None:
        ends = message_ends(spans, set(part_ends), transport.message_bytes)
        self._flying = deque(
            transport.recv(peer, spans[begin:end], tag_of(transfer_seq, number))
            for number, (begin, end) in enumerate(pairwise([0, *ends]))
        )

    @property
    def flying(self) -> Iterator[Ticket]:
        return iter(self._flying)

    @property
    def done(self) -> bool:
        return not self._flying

    def advance(self) -> bool:
        """Reap what has landed; True when everything has. Raises TransportError."""
        _reap(self._flying)
        return self.done


class OneSidedFlow(Flow):
    """Moves ``source[i]`` to ``destination[i]`` by one-sided batches, only what is released, from one end alone.

    At most ``window`` pieces are in flight, in batches of half of it: one is on the wire while the next is posted.
    """

    def __init__(
        self, transport: Transport, peer: int, source: Sequence[Span], destination: Sequence[Span], window: int
    ) -> None:
        assert len(source) == len(destination), "both ends plan the same pieces"
        self._transport = transport
        self._peer = peer
        self._source = source
        self._destination = destination
        self._window = window
        self._batch = -(-window // 2)
        self._released = 0
        self._posted = 0
        self._flying: deque[tuple[Ticket, int]] = deque()  # with their number of pieces
        self._num_flying = 0
        self.begin_ns: int | None = None  # this rank's perf_counter_ns at the first post

    @property
    def flying(self) -> Iterator[Ticket]:
        return (ticket for ticket, _ in self._flying)

    @property
    def done(self) -> bool:
        return self._posted == len(self._source) and not self._flying

    def stop(self) -> None:
        """Post no more: done when what is in flight is. The peer takes no part, so it misses nothing."""
        self._source, self._destination = self._source[: self._posted], self._destination[: self._posted]
        self._released = self._posted

    def release(self, count: int) -> None:
        """The first ``count`` source spans hold their final content (and, for a write, the destination is free)."""
        self._released = max(self._released, min(count, len(self._source)))

    def advance(self) -> bool:
        """Reap what is complete and post what is released; True when something changed. Raises TransportError."""
        changed = self._reap()
        while (count := min(self._batch, self._released - self._posted, self._window - self._num_flying)) > 0:
            if self.begin_ns is None:
                self.begin_ns = perf_counter_ns()
            pieces = slice(self._posted, self._posted + count)
            self._flying.append((self._post(self._source[pieces], self._destination[pieces]), count))
            self._posted += count
            self._num_flying += count
            changed = True
        return changed

    def _reap(self) -> bool:
        reaped = False
        while self._flying and self._flying[0][0].done():
            self._num_flying -= self._flying.popleft()[1]
            reaped = True
        return reaped

    @abstractmethod
    def _post(self, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        """One batch."""


class ReadFlow(OneSidedFlow):
    """The destination reads spans of the buffer that ``peer``, the source, has registered."""

    def _post(self, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        return self._transport.read(self._peer, source, destination)


class WriteFlow(OneSidedFlow):
    """The source writes spans into the buffer that ``peer``, the destination, has registered."""

    def _post(self, source: Sequence[Span], destination: Sequence[Span]) -> Ticket:
        return self._transport.write(self._peer, source, destination)


def _reap(flying: deque[Ticket]) -> bool:
    """Drop complete tickets from the front; a ticket behind an incomplete one waits its turn."""
    reaped = False
    while flying and flying[0].done():
        flying.popleft()
        reaped = True
    return reaped
