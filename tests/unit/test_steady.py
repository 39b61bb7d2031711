"""A worker whose steps follow on one another: the tokens, messages, rows and blocks of one that plans each step."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest

from xpyd import native
from xpyd.clock import Clock
from xpyd.faults import FaultConfig
from xpyd.model.runner import ModelRunner
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec
from xpyd.placement import Role
from xpyd.records import StageRow, StepRow
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker import serving
from xpyd.worker.desk import Desk
from xpyd.worker.engine import Engine
from xpyd.worker.messages import AnyMessage, Cancel, Cancelled, Gone, Message, Ready, Submit, Tokens, decode, encode
from xpyd.worker.serving import ServingWorker

SPEC = ModelSpec("x", 2, 64, 4, 2, 32, 96, 101)
BLOCK_SIZE = 4
PROMPTS = ([3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3, 2])
OUTPUT_LENS = (30, 61, 17)


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if native.multiplying() is None:
        pytest.skip("src/xpyd/native is not compiled, or this processor's vectors are too short")


class PlanningScheduler(ChunkedScheduler):
    """Plans every step."""

    plans_again = False


START = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
TEST = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int), ctypes.c_void_p)


class Line:
    """As ``worker.line.Line``, to a list; C sends by functions that stand in for MPI's."""

    def __init__(self, post: Post, message: Message) -> None:
        self._post, self._data = post, bytearray(encode(message))
        self.num_bytes = len(self._data)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._data))
        self.tell = self._for_c() if post.by_c else None

    def room(self, most: int) -> int:
        return most if self._post.line_free else 0

    def _for_c(self) -> tuple[int, int]:
        copy = ctypes.create_string_buffer(self.num_bytes)

        def start(request: int) -> int:
            assert request == 7
            self._post.num_by_line += 1
            self._post.sent.append(decode(bytes(copy)))
            return 0

        def test(request: int, come: Any, status: int) -> int:
            assert (request, status) == (8, 9)
            self._post.num_looks += 1
            come[0] = len(self._post.sent) in self._post.inbox
            return 0

        functions, page = (START(start), TEST(test)), ctypes.c_void_p(ctypes.addressof(copy))
        request = ctypes.c_void_p(7)
        inbox = native.Inbox(test=_address(functions[1]), request=8, status=9)
        line = native.Line(
            inbox=ctypes.pointer(inbox),
            start=_address(functions[0]),
            page=self.address,
            copies=ctypes.addressof(page),
            requests=ctypes.addressof(request),
            num_bytes=self.num_bytes,
            num_copies=1,
        )
        self._kept = (functions, copy, page, request, inbox, line)
        kernels = native.kernels()
        assert kernels is not None
        return _address(kernels.xpyd_tell), ctypes.addressof(line)

    def send(self) -> None:
        self._post.num_by_line += 1
        self._post.sent.append(decode(self._data))


class Post:
    """A mailbox: ``inbox`` is what comes, by the number of messages that were sent before it."""

    def __init__(self, inbox: dict[int, list[Message]], by_c: bool) -> None:
        self.inbox = inbox
        self.by_c = by_c
        self.sent: list[AnyMessage] = []
        self.ended: set[int] = set()
        self.num_by_line = 0
        self.num_looks = 0  # by C
        self.line_free = True

    def send_all(self, ranks: Iterable[int], message: Message) -> None:
        self.sent += [decode(encode(message)) for _ in ranks]

    def send(self, rank: int, message: Message) -> None:
        self.send_all((rank,), message)

    def line(self, rank: int, message: Message) -> Line | None:
        return Line(self, message)

    def poll(self) -> list[tuple[int, AnyMessage]]:
        return [(0, decode(encode(message))) for message in self.inbox.pop(len(self.sent), [])]

    def give_up(self, ranks: object) -> None:
        pass

    @property
    def tokens(self) -> dict[int, list[tuple[int, int, float]]]:
        """(index, token, margin) of each request, in the order of sending."""
        found: dict[int, list[tuple[int, int, float]]] = {}
        for message in self.sent:
            for each in message.tokens if isinstance(message, Tokens) else ():
                found.setdefault(each.request_id, []).append((each.index, each.token, each.margin))
        return found


class Rows(list[Any]):
    def write(self, row: Any) -> None:
        self.append(row)

    def write_all(self, rows: list[Any]) -> None:
        self.extend(rows)

    def flush(self) -> None:
        self.append("flushed")

    def flush_if_due(self) -> None:
        pass

    @property
    def steps(self) -> list[StepRow]:
        return [row for row in self if isinstance(row, StepRow)]


def submits(*requests: int) -> list[Message]:
    packed = [b"".join(token.to_bytes(4, "little") for token in PROMPTS[i]) for i in requests]
    return [Submit(i, prompt, OUTPUT_LENS[i], i, -1) for i, prompt in zip(requests, packed, strict=True)]


def worker_of(
    inbox: dict[int, list[Message]],
    kind: type[ChunkedScheduler] = ChunkedScheduler,
    num_blocks: int = 60,
    sampling: SamplingConfig | None = None,
    by_c: bool = False,
) -> tuple[ServingWorker, Post, Rows]:
    post, rows = Post(inbox, by_c), Rows()
    # Beats by the clock would be messages too.
    faults = FaultConfig(detect_s=4e6, beat_interval_s=1e6)
    desk: Any = Desk(1, 0, *_any(post, rows), Clock(), faults=faults, role=Role.COLOCATED)
    runner = ModelRunner(SPEC, num_blocks, BLOCK_SIZE, sampling=sampling)
    engine = Engine(runner, kind(SchedulerConfig("chunked", 4, 16, BLOCK_SIZE, num_blocks)))
    return ServingWorker(engine, desk, 1.0), post, rows


def _address(function: Any) -> int:
    found = ctypes.cast(function, ctypes.c_void_p).value
    assert found is not None
    return found


def _any(*values: Any) -> tuple[Any, ...]:
    return values


def play(worker: ServingWorker) -> int:
    """Until nothing is left: the turns that it took."""
    for turn in range(1000):
        worker.turn()
        if turn > 3 and worker.quiet:
            return turn
    raise AssertionError(worker.unfinished())


def shape(rows: Rows) -> list[tuple[int, ...]]:
    """All that a step's row says but its stamps."""
    return [
        (
            row.num_prefill_tokens,
            row.num_prefill_seqs,
            row.num_decode_seqs,
            row.num_context_tokens,
            row.num_free_kv_blocks,
            row.num_reserved_kv_blocks,
            row.num_waiting,
            row.num_preempted,
        )
        for row in rows.steps
    ]


@pytest.mark.parametrize("by_c", [False, True])
@pytest.mark.parametrize(("num_blocks", "max_steps"), [(60, 64), (19, 64), (60, 5)])
def test_tokens_rows_and_blocks_are_those_of_planned_steps(
    num_blocks: int, max_steps: int, by_c: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests come while others decode, and where there are 19 blocks some are preempted.

    ``by_c``: the steps of half a minute at once, if nothing comes.
    """
    monkeypatch.setattr("xpyd.worker.base.MAX_STEPS", max_steps)
    monkeypatch.setattr("xpyd.worker.base.AT_ONCE_NS", 30_000_000_000)
    monkeypatch.setattr("xpyd.worker.base.STRETCH_NS", 30_000_000_000)
    inbox = {1: submits(0, 1), 21: submits(2), 30: [Cancel(1, 0)]}
    planned, steady = (
        worker_of({k: list(v) for k, v in inbox.items()}, kind, num_blocks, by_c=by_c)
        for kind in (PlanningScheduler, ChunkedScheduler)
    )
    turns = []
    for worker, _, _ in (planned, steady):
        turns.append(play(worker))
        assert worker.engine.scheduler.num_free_blocks == num_blocks
    assert steady[1].tokens == planned[1].tokens
    assert [type(message) for message in steady[1].sent] == [type(message) for message in planned[1].sent]
    assert shape(steady[2]) == shape(planned[2])
    assert any(row.num_preempted for row in planned[2].steps) == (num_blocks == 19)
    assert planned[1].num_by_line == 0
    assert steady[1].num_by_line > len(steady[2].steps) / 2
    stages = [[(r.request_id, r.stage) for r in rows if isinstance(r, StageRow)] for _, _, rows in (planned, steady)]
    assert stages[0] == stages[1]
    assert (turns[1] < turns[0] / 2) == by_c  # else a step is a turn
    assert (steady[1].num_looks > 10) == by_c


def test_stamps_follow_on_one_another_and_are_those_of_the_messages() -> None:
    worker, post, rows = worker_of({1: submits(0, 1)})
    play(worker)
    stamps = [stamp for row in rows.steps for stamp in (row.begin_ns, row.end_ns)]
    assert stamps == sorted(stamps)
    ends = [message.emitted_ns for message in post.sent if isinstance(message, Tokens)]
    assert ends == [row.end_ns for row in rows.steps]


def test_a_stretch_that_waits_for_its_line_goes_on_without_it() -> None:
    """A message that has not left yet is not written over."""
    worker, post, _ = worker_of({1: submits(0)})
    for _ in range(10):
        worker.turn()
    num_by_line = post.num_by_line
    post.line_free = False
    worker.turn()
    assert post.num_by_line == num_by_line > 0
    post.line_free = True
    play(worker)
    assert [index for index, _, _ in post.tokens[0]] == list(range(OUTPUT_LENS[0]))


def test_sequences_are_true_when_one_is_cancelled() -> None:
    worker, post, _ = worker_of({1: submits(0, 1), 12: [Cancel(0, 3)]})
    while not any(isinstance(message, Cancelled) for message in post.sent):
        before = {s.request_id: s for s in worker.engine.scheduler.running}
        worker.turn()
    # What the client has been told of the request that goes on, up to the turn of the cancel, which runs a step too.
    assert before[1].outputs == [token for _, token, _ in post.tokens[1]]
    assert before[0].outputs == [token for _, token, _ in post.tokens[0]]
    assert worker.engine.scheduler.find(0) is None


def test_what_was_measured_is_written_when_a_rank_is_lost_or_the_worker_fails() -> None:
    worker, post, rows = worker_of({1: submits(0), 12: [Gone([5])]})
    while 12 in post.inbox:
        worker.turn()
    flushed = rows.index("flushed")
    assert len([row for row in rows[:flushed] if isinstance(row, StepRow)]) == 11  # and a beat was sent

    for _ in range(5):
        worker.turn()

    def fail() -> list[tuple[int, AnyMessage]]:
        raise OSError("the wire is cut")

    post.poll = fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="is cut"):
        worker.run()
    assert len(rows.steps) == sum(isinstance(message, Tokens) for message in post.sent) == 17


@pytest.mark.parametrize("sampling", [SamplingConfig(0.7)])
def test_drawn_tokens_are_left_to_planned_steps(sampling: SamplingConfig) -> None:
    worker, post, _ = worker_of({1: submits(0)}, sampling=sampling)
    play(worker)
    assert post.num_by_line == 0
    assert len(post.tokens[0]) == OUTPUT_LENS[0]


def test_without_compiled_code_every_step_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, post, _ = worker_of({1: submits(0, 1)})
    play(compiled)
    monkeypatch.setattr(native, "kernels", lambda: None)
    plain, other, _ = worker_of({1: submits(0, 1)})
    play(plain)
    assert (post.num_by_line > 0, other.num_by_line) == (True, 0)
    assert {k: [each[:2] for each in v] for k, v in post.tokens.items()} == {
        k: [each[:2] for each in v] for k, v in other.tokens.items()
    }


class Hand:
    """An end of the hand-off that hears of a transfer at message 20; it is under way until message 29 is made."""

    expects = False

    def __init__(self, post: Post) -> None:
        self._post = post

    def handle(self, source: int, message: AnyMessage) -> bool:
        assert isinstance(message, Ready)
        self.expects = True
        return True

    @property
    def quiet(self) -> bool:
        return not 20 <= len(self._post.sent) < 30

    def move(self) -> bool:
        return False

    def between_layers(self) -> None:
        pass


@pytest.mark.parametrize("short_ns", [0, 10**12])
def test_steps_look_between_layers_while_a_hand_off_is_open_and_long_ones_from_the_first_on(
    short_ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SHORT_STEP_NS", short_ns)
    monkeypatch.setattr(serving, "LOOK_NS", short_ns)
    worker, post, _ = worker_of({0: submits(1), 20: [Ready(9, 1)]})
    worker._ends = [*_any(Hand(post))]
    looks: Counter[int] = Counter()
    poll = post.poll
    monkeypatch.setattr(post, "poll", lambda: looks.update([len(post.sent)]) or poll())
    play(worker)
    every = 1 + SPEC.num_layers  # in a turn of the worker's loop, and behind each layer
    assert {looks[number] for number in range(20, 30)} == {every}
    assert {looks[number] for number in range(10, 20)} == {1}, "nothing is expected yet"
    # Steps that are planned anew, as where a block table gets wide, look once more.
    assert [looks[number] for number in range(31, 55)].count(every if short_ns == 0 else 1) > 20
    assert [index for index, _, _ in post.tokens[1]] == list(range(OUTPUT_LENS[1]))
