"""Offsets between ranks: none where they share a clock, measured where they do not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from time import perf_counter_ns, sleep

import pytest

from xpyd import clock
from xpyd.clock import Clock, synchronise

AHEAD_NS = 5_000_000_000


class Received:
    def __init__(self, buffer: bytearray, inbox: Queue[bytes]) -> None:
        self._buffer, self._inbox = buffer, inbox

    def Test(self) -> bool:
        if self._inbox.empty():
            return False
        message = self._inbox.get()
        self._buffer[: len(message)] = message
        return True


class Pair:
    """A communicator of two ranks that are threads; an answer is under way for ``delay_s``."""

    size = 2

    def __init__(self, rank: int, boxes: tuple[Queue[bytes], Queue[bytes]], delay_s: float) -> None:
        self.rank, self._boxes, self._delay_s = rank, boxes, delay_s

    def Irecv(self, buffer: bytearray, source: int, tag: int) -> Received:
        return Received(buffer, self._boxes[self.rank])

    def Send(self, buffer: bytes, dest: int, tag: int) -> None:
        if dest == 1:
            sleep(self._delay_s)
        self._boxes[dest].put(bytes(buffer))


@pytest.fixture
def offset(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bytes, bytes], Clock]:
    """The clock of rank 1, whose stamps are ``ahead_ns`` of rank 0's, and which name these sources."""

    def find(ahead_ns: int, source_0: bytes, source_1: bytes) -> Clock:
        here = threading.local()
        monkeypatch.setattr(clock, "perf_counter_ns", lambda: perf_counter_ns() + (ahead_ns if here.rank else 0))
        monkeypatch.setattr(clock, "clock_source", lambda: source_1 if here.rank else source_0)
        boxes: tuple[Queue[bytes], Queue[bytes]] = (Queue(), Queue())

        def play(rank: int) -> Clock:
            here.rank = rank
            return synchronise(Pair(rank, boxes, 2e-3), rounds=4, wait=lambda: None)

        with ThreadPoolExecutor(2) as both:
            return list(both.map(play, (0, 1)))[1]

    return find


def test_ranks_of_one_clock_have_no_offset(offset: Callable[[int, bytes, bytes], Clock]) -> None:
    assert offset(0, b"one.boot", b"one.boot") == Clock(0, 0)


@pytest.mark.parametrize("sources", [(b"one.boot", b"two.boot"), (clock.NO_SOURCE, clock.NO_SOURCE)])
@pytest.mark.parametrize("ahead_ns", [0, AHEAD_NS])
def test_other_clocks_are_measured(
    offset: Callable[[int, bytes, bytes], Clock], ahead_ns: int, sources: tuple[bytes, bytes]
) -> None:
    found = offset(ahead_ns, *sources)
    assert found.error_ns >= 1_000_000, "half of a round trip with a slow answer"
    assert abs(found.offset_ns + ahead_ns) <= found.error_ns


def test_a_copied_machine_does_not_pass_for_the_same(offset: Callable[[int, bytes, bytes], Clock]) -> None:
    """A restored snapshot keeps the boot's name; its stamps tell that they are of another clock."""
    found = offset(AHEAD_NS, b"one.boot", b"one.boot")
    assert found.error_ns > 0
    assert abs(found.offset_ns + AHEAD_NS) <= found.error_ns


def test_this_kernels_clock_has_a_name() -> None:
    assert clock.clock_source() == clock.clock_source() != clock.NO_SOURCE
