"""The client without ranks: what it makes of messages in whatever order they come."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from xpyd.clock import Clock
from xpyd.dispatch import PoolDispatch
from xpyd.faults import FaultConfig
from xpyd.placement import PlacementConfig, place
from xpyd.records import StageRow, TokenRow
from xpyd.request import Request, Stage
from xpyd.router import RoundRobin
from xpyd.worker.client import Client
from xpyd.worker.desk import Desk
from xpyd.worker.messages import Beat, Emitted, Submit, Tokens
from xpyd.worker.pace import LOOKS_PER_STEP

PREFILL, DECODE = 1, 2
OUTPUT_LEN = 4
PLACEMENT = place(PlacementConfig(num_prefill=1, num_decode=1, allow_shared_node=True), ["n"] * 3)


class Post:
    """A mailbox that answers a submit with tokens, in a given order of (rank, index)."""

    def __init__(self, order: list[tuple[int, int]]) -> None:
        self._order = order
        self._inbox: list[tuple[int, Tokens]] = []
        self.ended: set[int] = set()
        self.told_s: defaultdict[type, list[float]] = defaultdict(list)  # when all were told, by kind of message

    def send(self, rank: int, message: object) -> None:
        if isinstance(message, Submit):
            for source, index in self._order:
                tokens = [Emitted(message.request_id, index, 10 + index, 1.0)]
                self._inbox.append((source, Tokens.of(0, tokens)))

    def send_all(self, ranks: object, message: object) -> None:
        self.told_s[type(message)].append(time.monotonic())

    def poll(self) -> Iterator[tuple[int, Tokens | Beat]]:
        yield from ((rank, Beat()) for rank in (PREFILL, DECODE))
        while self._inbox:
            yield self._inbox.pop(0)


class Rows:
    def __init__(self) -> None:
        self.written: list[object] = []

    def write(self, row: object) -> None:
        self.written.append(row)

    def flush(self) -> None:
        pass

    flush_if_due = flush


@pytest.mark.parametrize(
    "order",
    [
        [(PREFILL, 0), (DECODE, 1), (DECODE, 2), (DECODE, 3)],
        [(DECODE, 1), (PREFILL, 0), (DECODE, 2), (DECODE, 3)],
        [(DECODE, 1), (DECODE, 2), (DECODE, 3), (PREFILL, 0)],
        [(PREFILL, 0), (DECODE, 1), (DECODE, 1), (PREFILL, 0), (DECODE, 2), (DECODE, 3)],
    ],
)
def test_tokens_of_two_ranks_may_overtake_each_other(order: list[tuple[int, int]]) -> None:
    """Each is recorded once, and the request ends with the last that comes."""
    post, rows = Post(order), Rows()
    desk = Desk(0, 0, *_any(post, rows), Clock())
    dispatch = PoolDispatch(RoundRobin(), RoundRobin())
    client = Client(desk, PLACEMENT, dispatch, 100, 2.0, lambda: False, FaultConfig(), {})
    played = client.play([Request(7, 0, 3, OUTPUT_LEN)])
    assert played.unfinished == ()
    tokens = [row for row in rows.written if isinstance(row, TokenRow)]
    assert sorted((row.index, row.token_id, row.rank) for row in tokens) == [
        (0, 10, PREFILL),
        (1, 11, DECODE),
        (2, 12, DECODE),
        (3, 13, DECODE),
    ]
    ends = [row.stage for row in rows.written if isinstance(row, StageRow)]
    assert ends[-1] == Stage.FINISHED


def test_workers_hear_of_a_client_that_prepares_for_longer_than_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty seconds of hashing prompts, say, before the first request is due."""
    now_s = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])

    class Slow(PoolDispatch):
        def prepare(self, request: Request) -> None:
            now_s[0] += 1.0

    post = Post([(PREFILL, 0), (DECODE, 1), (DECODE, 2), (DECODE, 3)])
    desk = Desk(0, 0, *_any(post, Rows()), Clock())
    faults = FaultConfig(detect_s=5.0, beat_interval_s=0.5)
    client = Client(desk, PLACEMENT, Slow(RoundRobin(), RoundRobin()), 100, 2.0, lambda: False, faults, {})
    played = client.play([Request(i, 0, 3, OUTPUT_LEN) for i in range(20)])
    assert (played.unfinished, now_s[0]) == ((), 20.0)
    beats_s = post.told_s[Beat]
    assert beats_s[:20] == [1.0 + i for i in range(20)]


class Told:
    """A mailbox and a clock: rank ``DECODE`` tells of a token of every request whenever a step of 2 ms has ended."""

    STEP_NS = 2_000_000

    def __init__(self) -> None:
        self.ns = 0
        self.ended: set[int] = set()
        self.sleeps_s: list[float] = []
        self.sent_ns: list[int] = []
        self._left: dict[int, int] = {}  # tokens to come, by request
        self._told_ns = 0

    def now_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        assert seconds > 0.0, "the client spins"
        self.sleeps_s.append(seconds)
        self.ns += round(seconds * 1e9)

    def send(self, rank: int, message: object) -> None:
        if isinstance(message, Submit):
            self.sent_ns.append(self.ns)
            self._left[message.request_id] = LONG
            self._told_ns = self._told_ns or self.ns

    def send_all(self, ranks: object, message: object) -> None:
        pass

    def poll(self) -> Iterator[tuple[int, Tokens]]:
        while self._left and self._told_ns + self.STEP_NS <= self.ns:
            self._told_ns += self.STEP_NS
            yield DECODE, Tokens.of(self._told_ns, [Emitted(i, LONG - n, 1, 1.0) for i, n in self._left.items()])
            self._left = {i: n - 1 for i, n in self._left.items() if n > 1}


LONG = 30


@pytest.mark.parametrize("concurrency", [None, 1])
def test_a_client_looks_some_times_in_a_step_and_sends_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch, concurrency: int | None
) -> None:
    told = Told()
    monkeypatch.setattr("xpyd.worker.client.time.sleep", told.sleep)
    desk = Desk(0, 0, *_any(told, Rows(), told))
    client = Client(
        desk, PLACEMENT, PoolDispatch(RoundRobin(), RoundRobin()), 100, 2.0, lambda: False, FaultConfig(), {}
    )
    due_ns = [0, 31_234_567]
    played = client.play([Request(i, due_ns[i], 3, LONG) for i in range(2)], concurrency)
    assert played.unfinished == ()
    known_s = told.sleeps_s[-60:]  # of the last seven steps
    usual_s = told.STEP_NS / 1e9 / LOOKS_PER_STEP
    assert max(known_s) <= 1.5 * usual_s
    assert usual_s / 2 <= sorted(known_s)[10], "the shorter ones are cut off by a request that is due"
    if concurrency is None:
        assert [sent_ns - played.begin_ns for sent_ns in told.sent_ns] == pytest.approx(due_ns, abs=2)


def _any(*values: Any) -> tuple[Any, ...]:
    return values
