"""Fault policy without ranks: who is lost and when, what becomes of their requests, which blocks may be used again."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from xpyd.clock import Clock
from xpyd.dispatch import Way
from xpyd.faults import FaultConfig, Watch
from xpyd.placement import PlacementConfig, Role, place
from xpyd.records import LossRow
from xpyd.request import Request
from xpyd.scheduler.base import NeverFits
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.decode_only import DecodeOnlyScheduler
from xpyd.scheduler.sequence import Sequence
from xpyd.worker.desk import Desk
from xpyd.worker.handoff import Outgoing, Undo
from xpyd.worker.messages import Beat, Cancel, Cancelled, Gone, Release, Submit
from xpyd.worker.rescue import Flight, Rescue
from xpyd.worker.source import SourceEnd

CONFIG = FaultConfig("go_on", detect_s=2.0, beat_interval_s=0.5)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"detect_s": 1.9, "beat_interval_s": 0.5}, "detect_s=1.9 is less than 4 times beat_interval_s=0.5"),
        ({"policy": "retry"}, "policy=retry without max_retries"),
        ({"policy": "go_on", "max_retries": 2}, "max_retries=2 with policy=go_on"),
    ],
)
def test_a_config_that_cannot_work_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FaultConfig(**fields)


class TestWatch:
    """Looks come every half second, as the client's do."""

    @staticmethod
    def look(watch: Watch, until_s: float, beating: tuple[int, ...] = (), ended: tuple[int, ...] = ()) -> list[Any]:
        found = []
        for half in range(1, round(2 * until_s) + 1):
            for rank in beating:
                watch.heard(rank, half / 2)
            found += [(half / 2, loss.rank, loss.reason) for loss in watch.look(half / 2, ended)]
        return found

    def test_the_silent_one_is_lost_once_at_the_bound(self) -> None:
        watch = Watch([1, 2], CONFIG, 0.0)
        assert self.look(watch, 5.0, beating=(2,)) == [(2.0, 1, "nothing heard of it for 2.0 s")]

    def test_an_ended_process_is_lost_at_once(self) -> None:
        watch = Watch([1, 2], CONFIG, 0.0)
        assert self.look(watch, 1.0, beating=(1, 2), ended=(2,)) == [(0.5, 2, "its process has ended")]

    def test_a_suspect_is_lost_when_its_beats_are_late(self) -> None:
        watch = Watch([1], CONFIG, 0.0)
        watch.suspect(1, "connection reset", 0.0)
        assert self.look(watch, 3.0) == [(1.5, 1, "connection reset")]

    def test_a_suspect_that_beats_is_lost_at_the_bound(self) -> None:
        """Then it is its link to that peer that is lost."""
        watch = Watch([1], CONFIG, 0.0)
        watch.suspect(1, "unreachable", 0.0)
        assert self.look(watch, 5.0, beating=(1,)) == [(2.0, 1, "unreachable")]

    def test_a_watcher_that_did_not_run_blames_nobody(self) -> None:
        watch = Watch([1], CONFIG, 0.0)
        watch.heard(1, 0.4)
        watch.look(0.5)
        assert watch.look(60.0) == []
        assert [loss.rank for loss in watch.look(60.5) + watch.look(61.0) + watch.look(61.5)] == [1]


@dataclass
class Post:
    """A mailbox that keeps what is sent."""

    sent: list[tuple[int, Any]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)

    def send_all(self, ranks: Any, message: Any) -> None:
        self.sent += [(rank, message) for rank in sorted(ranks)]

    def give_up(self, ranks: Any) -> None:
        pass

    def of(self, kind: type) -> list[tuple[int, Any]]:
        return [each for each in self.sent if isinstance(each[1], kind)]


class Rows(list[Any]):
    write = list.append

    def flush(self) -> None:
        pass


def rescue_of(config: FaultConfig, num_prefill: int = 2) -> tuple[Rescue, Post, Rows]:
    """Ranks 1 to ``num_prefill`` prefill, the two after them decode."""
    placement = place(PlacementConfig(num_prefill, 2, allow_shared_node=True), ["here"] * (num_prefill + 3))
    post, rows = Post(), Rows()
    desk: Any = Desk(0, 7, post, rows, Clock())  # type: ignore[arg-type]
    return Rescue(desk, placement, config, {}), post, rows


def flight(request_id: int, prefill: int, decode: int, sent_s: float = 0.0) -> Flight:
    return Flight(Request(request_id, 0, 8, 4), b"", Way(prefill, decode), sent_s)


@pytest.mark.parametrize(("config", "retried"), [(CONFIG, False), (FaultConfig("retry", max_retries=1), True)])
def test_the_requests_of_a_dead_rank_are_undone_by_its_peer_first(config: FaultConfig, retried: bool) -> None:
    rescue, post, rows = rescue_of(config)
    flights = {5: flight(5, 1, 3), 6: flight(6, 2, 4)}
    post.ended.add(1)
    assert rescue.tend(flights) == [], "rank 3 has not said yet that nothing is left"
    assert post.of(Gone) == [(rank, Gone([1])) for rank in (1, 2, 3, 4)], "the lost one too: it may only be asleep"
    assert post.of(Cancel) == [(3, Cancel(5, 0))]
    assert rescue.pool(Role.PREFILL) == (2,)
    assert rescue.lost == {1: "rank 1 (prefill on here) is lost: its process has ended"}
    [row] = rows
    assert isinstance(row, LossRow)
    assert (row.block, row.rank, row.role, row.num_requests) == (7, 1, "prefill", 1)
    rescue.cancelled(flights[5], 3, Cancelled(5, 0, "its KV moves from rank 1"))
    [undone] = rescue.tend(flights)
    assert undone.undoing is not None
    assert undone.undoing.retry is retried
    assert undone.undoing.stages == ["at rank 3 (decode on here): its KV moves from rank 1"]
    assert not rescue.verdict


def test_a_late_answer_to_an_earlier_attempt_counts_for_nothing() -> None:
    rescue, post, _ = rescue_of(CONFIG)
    mine = flight(5, 1, 3)
    mine.attempt = 1
    post.ended.add(1)
    rescue.tend({5: mine})
    rescue.cancelled(mine, 3, Cancelled(5, 0, "not here"))
    assert mine.undoing is not None
    assert mine.undoing.waiting == {3}


def test_a_peer_lost_too_is_not_waited_for() -> None:
    rescue, post, _ = rescue_of(CONFIG)
    flights = {5: flight(5, 1, 3)}
    post.ended |= {1, 3}
    assert rescue.tend(flights) == [flights[5]]


@pytest.mark.parametrize(
    ("config", "num_prefill", "said"),
    [(FaultConfig(), 2, "faults.policy=end"), (CONFIG, 1, "no prefill instance is left")],
)
def test_the_block_ends_by_policy_or_without_a_pool(config: FaultConfig, num_prefill: int, said: str) -> None:
    rescue, post, _ = rescue_of(config, num_prefill)
    post.ended.add(1)
    rescue.tend({5: flight(5, 1, num_prefill + 1)})
    assert said in rescue.verdict
    assert post.of(Cancel) == []


def test_a_request_past_its_limit_is_cancelled_at_both_ends_once() -> None:
    rescue, post, _ = rescue_of(FaultConfig(request_timeout_s=0.1))
    flights = {5: flight(5, 1, 3, sent_s=-1e9), 6: flight(6, 2, 4, sent_s=1e18)}
    rescue.tend(flights)
    rescue.tend(flights)
    assert post.of(Cancel) == [(1, Cancel(5, 0)), (3, Cancel(5, 0))]
    assert flights[5].undoing is not None
    assert flights[5].undoing.reason.endswith("(faults.request_timeout_s)")
    assert not flights[5].undoing.retry


def test_a_lost_rank_is_not_heard_any_more() -> None:
    rescue, post, _ = rescue_of(CONFIG)
    assert rescue.heard(1)
    post.ended.add(1)
    rescue.tend({})
    assert not rescue.heard(1)
    assert 1 not in {rank for rank, _ in post.of(Beat)[4:]}


def test_a_cancel_that_meets_the_release_on_its_way_is_confirmed_by_the_source() -> None:
    """The destination had let go of the request before it heard of the cancel, and says nothing more."""
    confirmed: list[Any] = []
    submit, undo = Submit(5, b"", 4, 0, 3), Undo(0, "its KV moves to rank 3", False, 0)
    outgoing = Outgoing(submit, 0, sequence=Sequence(5, [0] * 8, 1), undo=undo)
    desk = SimpleNamespace(block=7, rank=1, rows=Rows(), stamp=lambda *_: None, confirm=lambda *a: confirmed.append(a))
    source: Any = SimpleNamespace(desk=desk, _outgoing={5: outgoing}, _submits={5: submit}, _payload_bytes=lambda _: 0)
    source._config = SimpleNamespace(mode="whole", direction="pull")
    source.engine = SimpleNamespace(scheduler=SimpleNamespace(release=lambda _: None))
    SourceEnd._released(source, outgoing, Release(5, 0, 0, 0, 0, 0, False, False))
    assert confirmed == [(5, 0, "its KV moves to rank 3")]
    assert not source._outgoing


LIMITS = SchedulerConfig("chunked", 4, 32, block_size=4, num_kv_blocks=8)


def test_blocks_that_may_still_be_touched_are_never_handed_out_again() -> None:
    scheduler = ChunkedScheduler(LIMITS)
    first = Sequence(1, [0] * 12, 1)
    scheduler.add(first)
    scheduler.schedule()
    table = set(first.block_table)
    scheduler.release(first, reuse=False)
    assert scheduler.quarantined == table
    assert scheduler.num_free_blocks == 8 - 3
    with pytest.raises(NeverFits, match="the pool has 5"):
        scheduler.add(Sequence(2, [0] * 24, 1))
    scheduler.add(Sequence(3, [0] * 20, 1))
    [chunk] = scheduler.schedule().prefills
    assert not table & set(chunk.sequence.block_table)


def test_a_reserved_table_goes_back_or_into_quarantine_and_stays_there_for_the_next_block() -> None:
    scheduler = DecodeOnlyScheduler(LIMITS)
    kept, spoilt = scheduler.reserve(2), scheduler.reserve(3)
    assert kept is not None
    assert spoilt is not None
    scheduler.unreserve(kept)
    scheduler.unreserve(spoilt, reuse=False)
    assert (scheduler.num_reserved_blocks, scheduler.num_free_blocks) == (0, 5)
    following = DecodeOnlyScheduler(LIMITS)
    following.withhold(scheduler.quarantined)
    assert following.num_free_blocks == 5
    assert following.reserve(5) is not None
    assert following.num_free_blocks == 0
