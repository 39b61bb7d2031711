"""A step that takes longer than ``faults.detect_s``: the rank is heard of, and hears the others, between its layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xpyd.faults import ClientLost, FaultConfig
from xpyd.placement import CLIENT_RANK, Role
from xpyd.worker.messages import AnyMessage, Beat, Message
from xpyd.worker.serving import ServingWorker

LAYER_S = 0.4
FAULTS = FaultConfig(detect_s=5.0, beat_interval_s=0.5)


class Post:
    def __init__(self) -> None:
        self.ended: set[int] = set()
        self.sent: list[Message] = []
        self.client_lives = True
        self.num_looks = 0

    def send(self, rank: int, message: Message) -> None:
        self.sent.append(message)

    def poll(self) -> list[tuple[int, AnyMessage]]:
        self.num_looks += 1
        return [(CLIENT_RANK, Beat())] if self.client_lives else []


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def worker_of(post: Post, role: Role) -> ServingWorker:
    engine: Any = SimpleNamespace(scheduler=SimpleNamespace(num_quarantined=0))
    desk: Any = SimpleNamespace(mailbox=post, rank=1, faults=FAULTS, role=role, step_columns=(0, 1, role.value))
    return ServingWorker(engine, desk, 1.0)


def run_layers(worker: ServingWorker, num_layers: int, now_s: list[float]) -> None:
    for layer in range(num_layers):
        now_s[0] += LAYER_S
        worker.on_layer(layer)


def test_a_client_that_lives_is_not_lost_in_a_long_step(now_s: list[float]) -> None:
    """A colocated rank has no hand-off to look after; it looks when a beat of its own is due, and not more often."""
    post = Post()
    run_layers(worker_of(post, Role.COLOCATED), 100, now_s)
    num_beats = sum(isinstance(message, Beat) for message in post.sent)
    assert num_beats == pytest.approx(100 * LAYER_S / FAULTS.beat_interval_s, rel=0.5)
    assert post.num_looks == num_beats


def test_a_client_that_is_gone_is_found_within_a_long_step(now_s: list[float]) -> None:
    post = Post()
    worker = worker_of(post, Role.COLOCATED)
    run_layers(worker, 10, now_s)
    post.client_lives = False
    with pytest.raises(ClientLost):
        run_layers(worker, round(2 * FAULTS.detect_s / LAYER_S), now_s)
