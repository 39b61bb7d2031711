"""Ranks that are lost when the last token is out and the block is not yet over everywhere, without ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from xpyd.clock import Clock
from xpyd.dispatch import PoolDispatch
from xpyd.faults import ClientLost, FaultConfig
from xpyd.placement import PlacementConfig, place
from xpyd.records import LossRow
from xpyd.router import RoundRobin
from xpyd.worker import crew as crew_module
from xpyd.worker.client import Client
from xpyd.worker.crew import Crew
from xpyd.worker.desk import Desk
from xpyd.worker.follower import Follower
from xpyd.worker.messages import Beat, Gone
from xpyd.worker.pulse import Pulse
from xpyd.worker.rescue import Rescue
from xpyd.worker.undo import UndoingSource

GO_ON = FaultConfig("go_on", detect_s=2.0, beat_interval_s=0.5)


class Sent:
    """A request that is complete at once."""

    def Test(self) -> bool:
        return True


@dataclass
class World:
    """Rank 0's end of a communicator: what the others have sent, and what it sends."""

    size: int
    inbox: dict[int, list[Any]]
    rank: int = 0
    replies: list[tuple[int, Any]] = field(default_factory=list)

    def Dup(self) -> World:
        return self

    def iprobe(self, source: int, tag: int) -> bool:
        return bool(self.inbox.get(source))

    def recv(self, source: int, tag: int) -> Any:
        return self.inbox[source].pop(0)

    def isend(self, value: Any, dest: int, tag: int) -> Sent:
        self.replies.append((dest, value))
        return Sent()


def crew_of(world: World, patience_s: float) -> tuple[Crew, list[tuple[int, str]]]:
    missed: list[tuple[int, str]] = []

    def note(rank: int, why: str, waited_s: float) -> str:
        missed.append((rank, why))
        return f"rank {rank} is lost: {why}"

    return Crew(world, patience_s, note, lambda ranks, waited_s: None), missed


def test_nobody_waits_for_a_rank_that_is_found_lost_meanwhile() -> None:
    world = World(4, {1: ["a"]})
    crew, missed = crew_of(world, patience_s=5.0)
    steps: list[Callable[[], None]] = [lambda: crew.lost.update({2: "silent"}), lambda: world.inbox.update({3: ["c"]})]

    def attend() -> None:
        if steps:
            steps.pop(0)()

    assert crew.gather("mine", attend) == ["mine", "a", None, "c"]
    assert world.replies == [(rank, (None, {2: "silent"})) for rank in (1, 2, 3)], "the lost one too: it may wake"
    assert missed == [], "it was found by who attends, which told of it"
    assert crew.ranks == [0, 1, 3]


def test_who_misses_a_barrier_is_told_of() -> None:
    crew, missed = crew_of(World(3, {1: [None]}), patience_s=0.0)
    crew.wait()
    assert missed == [(2, "it did not come to a barrier within 0 s of the client")]
    assert crew.lost == {2: f"rank 2 is lost: {missed[0][1]}"}


def test_a_wait_without_a_bound_says_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "NOTE_S", 0.0)
    world, noted = World(3, {1: [None]}), list[tuple[list[int], float]]()

    def note(ranks: list[int], waited_s: float) -> None:
        noted.append((ranks, waited_s))
        if len(noted) == 3:
            world.inbox[2] = [None]

    crew = Crew(world, 0.0, lambda *_: "lost", note)
    crew.wait(patient=True)
    assert [ranks for ranks, _ in noted] == [[2], [2], [2]]
    assert sorted(waited_s for _, waited_s in noted) == [waited_s for _, waited_s in noted]
    assert crew.lost == {}


class Post:
    """A mailbox without peers."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Any]] = []
        self.ended: set[int] = set()

    def send(self, rank: int, message: Any) -> None:
        self.sent.append((rank, message))

    def send_all(self, ranks: Any, message: Any) -> None:
        self.sent += [(rank, message) for rank in ranks]

    def give_up(self, ranks: Any) -> None:
        pass

    def poll(self) -> Iterator[tuple[int, Any]]:
        return iter(())


class Rows(list[Any]):
    write = list.append

    def flush(self) -> None:
        pass

    flush_if_due = flush


@pytest.mark.parametrize(
    ("config", "verdict"),
    [(GO_ON, ""), (FaultConfig(), "rank 1 (prefill on n) is lost: its process has ended")],
)
def test_the_client_watches_after_its_last_request(config: FaultConfig, verdict: str) -> None:
    post, rows, lost = Post(), Rows(), dict[int, str]()
    desk: Any = Desk(0, 3, post, rows, Clock())  # type: ignore[arg-type]
    placement = place(PlacementConfig(2, 1, allow_shared_node=True), ["n"] * 4)
    dispatch = PoolDispatch(RoundRobin(), RoundRobin())
    client = Client(desk, placement, dispatch, 100, 2.0, lambda: False, config, lost)
    client.play([])
    post.ended.add(1)
    client.attend()
    [row] = rows
    assert isinstance(row, LossRow)
    assert (row.block, row.rank, row.num_requests) == (3, 1, 0)
    assert set(lost) == {1}
    assert [rank for rank, message in post.sent if isinstance(message, Gone)] == [1, 2, 3]
    assert client.verdict.startswith(verdict)
    assert bool(client.verdict) == bool(verdict)


def test_a_block_without_a_pool_ends_as_it_begins() -> None:
    """Its last instance was lost when the block before it was over."""
    desk: Any = Desk(0, 3, Post(), Rows(), Clock())  # type: ignore[arg-type]
    placement = place(PlacementConfig(2, 1, allow_shared_node=True), ["n"] * 4)
    assert Rescue(desk, placement, GO_ON, {1: "rank 1 is lost"}).verdict == ""
    assert (
        Rescue(desk, placement, GO_ON, {3: "rank 3 is lost"}).verdict
        == "rank 3 is lost, and no decode instance is left"
    )


def test_a_worker_that_waits_for_the_others_is_heard_and_misses_the_client() -> None:
    post = Post()
    desk: Any = Desk(2, 3, post, Rows(), Clock())  # type: ignore[arg-type]
    follower = object.__new__(Follower)  # without a model
    follower._desk, follower._pulse = desk, Pulse(desk.mailbox, desk.rank, desk.faults)
    follower.attend()
    assert post.sent == [(0, Beat())]
    post.ended.add(0)
    follower._pulse.due_s = 0.0
    with pytest.raises(ClientLost, match="its process has ended"):
        follower.attend()


def test_hand_offs_whose_release_was_lost_with_their_peer_are_dropped() -> None:
    """Their requests have ended: no cancel comes."""
    dropped: list[tuple[int, int]] = []
    handoffs = {5: _outgoing(peer=3), 6: _outgoing(peer=4), 7: _outgoing(peer=3, undo="cancelled before")}
    source: Any = SimpleNamespace(mover=SimpleNamespace(lost={3: True}), _outgoing=handoffs)
    source.cancel = lambda request_id, attempt: dropped.append((request_id, attempt))
    UndoingSource.drop_orphans(source)
    assert dropped == [(5, 2)]


def _outgoing(peer: int, undo: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(undo=undo, submit=SimpleNamespace(peer=peer, attempt=2))
