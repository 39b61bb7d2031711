"""What a real worker's step costs beside the model: schedule, segments, packing, commit, rows, and the token message.

Two ranks: a client that takes in what it is told, and a ``ServingWorker`` with a real scheduler, mailbox and row writer
that decodes a batch. The model's time, sampling included, is taken inside it without what the worker does between
layers; the rest of a turn of the worker's loop is the overhead.

A worker puts some of its work off, and does it for many steps at once. So times are taken over rounds of as many steps
as it puts off at most: each holds its share of that, which a median over steps would leave out.

Over TCP a token message cannot cost less than a system call. So rounds take turns with others in which a plain socket
sends as many bytes in MPI's place: the limit.
"""

from __future__ import annotations

import gc
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

from xpyd.clock import Clock
from xpyd.faults import FaultConfig
from xpyd.model.compiled import CompiledSteps
from xpyd.model.follow import FollowOn
from xpyd.model.runner import ModelRunner
from xpyd.model.sampling import sample
from xpyd.placement import Role
from xpyd.run_dir import RowWriter, RunDir
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.sequence import Sequence
from xpyd.streams import FOLDER
from xpyd.worker.desk import Desk
from xpyd.worker.engine import Engine
from xpyd.worker.line import Line
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import EndBlock, Tokens
from xpyd.worker.pace import Pace
from xpyd.worker.serving import ServingWorker
from xpyd.worker.steady import MAX_STEPS

WARM_UP = 5
ROUND = MAX_STEPS + 1  # steps at least: those of one stretch, and the one that begins it
MOST_OUTPUTS = WARM_UP + 2 * ROUND  # of a request, so that none ends within a round


@dataclass(frozen=True)
class Overhead:
    """Seconds of a step, medians over rounds of steps; ``share`` is the median of the share of each round."""

    model: str
    client: str  # where it is: a key of ``own.CLIENTS``
    batch: int
    context: int
    num_steps: int
    step_s: float
    beside_s: float
    share: float
    bare_send_s: float | None  # what a plain socket's send of the tokens takes; None where they need no system call


class _Stopwatch:
    """Sums the time of calls, and takes it off that of the calls of ``within`` in which they are made."""

    def __init__(self, within: _Stopwatch | None = None) -> None:
        self.total_ns = 0
        self._within = within

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = perf_counter_ns()
            result = call(*arguments)
            taken = perf_counter_ns() - begin
            self.total_ns += taken
            if self._within is not None:
                self._within.total_ns -= taken
            return result

        return timed


def _stamped(follow: FollowOn, model: _Stopwatch) -> Callable[[int], int]:
    """``follow.step``, with what its steps' own stamps say they took."""
    step = follow.step

    def timed(most: int) -> int:
        num_steps = step(most)
        stamps = follow.stamps[-2 * num_steps :]
        model.total_ns += sum(stamps[1::2]) - sum(stamps[::2])
        return num_steps

    return timed


def listen(mailbox: Mailbox, wire: socket.socket | None) -> None:
    """The client: take in what the worker tells, and sleep when there is nothing, until it says that it has ended."""
    pace = Pace()
    while True:
        messages = list(mailbox.poll())
        for source, message in messages:
            if isinstance(message, Tokens):
                pace.heard(source, message.emitted_ns)
        if any(isinstance(message, EndBlock) for _, message in messages):
            return
        if not messages:
            _empty(wire)
            time.sleep(pace.sleep_s())


def _empty(wire: socket.socket | None) -> None:
    """What a plain socket brought is of no use, and must not fill it."""
    if wire is not None:
        with suppress(BlockingIOError):
            wire.recv(1 << 16)


def measure(
    runner: ModelRunner,
    mailbox: Mailbox,
    rank: int,
    client: str,
    batch: int,
    context: int,
    num_rounds: int,
    wire: socket.socket | None,
) -> Overhead:
    """The worker ``rank``: decode ``batch`` requests behind ``context`` tokens, ``num_rounds`` times anew.

    ``wire``: a plain socket to the client, for the limit.
    """
    config = SchedulerConfig("chunked", batch, 4096, runner.cache.block_size, runner.cache.layout.num_blocks)
    model = _Stopwatch()
    hooks = _Stopwatch(within=model)

    def follow_on(*arguments: Any) -> FollowOn:
        follow = FollowOn(*arguments)
        *_, on_layer = arguments
        if on_layer is None:  # C runs and tells them; else the parts of a step are timed, as those of any other
            follow.step = _stamped(follow, model)
        return follow

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(runner, "_forward", model.around(runner._forward)),
        patch.object(CompiledSteps, "_advance_all", model.around(CompiledSteps._advance_all)),
        patch.object(CompiledSteps, "_draw", model.around(CompiledSteps._draw)),
        patch("xpyd.worker.steady.FollowOn", follow_on),
        patch("xpyd.model.runner.sample", model.around(sample)),
    ):
        (Path(folder) / FOLDER).mkdir()
        rows, faults = RowWriter(RunDir(Path(folder)), 0), FaultConfig(detect_s=600.0)
        desk = Desk(rank, 0, mailbox, rows, Clock(), faults=faults, role=Role.COLOCATED)
        worker = ServingWorker(Engine(runner, ChunkedScheduler(config)), desk, drain_timeout_s=60.0)
        worker.on_layer = hooks.around(worker.on_layer)  # type: ignore[method-assign]
        rounds, sends = [], []
        tokens = bytes(Tokens.num_bytes(batch))
        for _ in range(num_rounds):
            rounds.append(_round(worker, batch, context, model))
            if wire is not None:
                sends.append(_bare_send(worker, batch, context, model, partial(wire.send, tokens)))
    return Overhead(
        model=runner.spec.name,
        client=client,
        batch=batch,
        context=context,
        num_steps=num_rounds * ROUND,
        step_s=median(whole for whole, _ in rounds) / 1e9,
        beside_s=median(whole - model for whole, model in rounds) / 1e9,
        share=median(1 - model / whole for whole, model in rounds),
        bare_send_s=median(sends) / 1e9 if sends else None,
    )


def _round(worker: ServingWorker, batch: int, context: int, model: _Stopwatch) -> tuple[float, float]:
    """Ns of a step, and of the model in it, over ``ROUND`` steps or a few more. What the KV says does not matter."""
    scheduler, size = worker.engine.scheduler, worker.engine.scheduler.config.block_size
    for i in range(batch):
        length = context + i % size  # so that their blocks begin in different steps
        table = scheduler.reserve(-(-length // size))
        assert table is not None, "the pool is too small"
        prompt = [(i + j) % worker.engine.runner.spec.vocab_size for j in range(length)]
        scheduler.admit(Sequence(i, prompt, MOST_OUTPUTS, [i], length, table))
    gc.disable()
    _play(worker, WARM_UP)
    begin, model_ns = perf_counter_ns(), model.total_ns
    num_steps = _play(worker, ROUND)
    whole = perf_counter_ns() - begin
    gc.enable()
    worker.settle()
    for i in range(batch):
        scheduler.abort(i)
    return whole / num_steps, (model.total_ns - model_ns) / num_steps


def _play(worker: ServingWorker, least: int) -> int:
    """So many steps, or more: a turn of the worker's loop may be several. How many they were."""
    first = num_steps = _num_steps(worker)
    while num_steps - first < least:
        worker.turn()
        num_steps = _num_steps(worker)
    return num_steps - first


def _num_steps(worker: ServingWorker) -> int:
    """That every sequence has behind it, those that a stretch will say of them included."""
    of_stretch = worker._steady.stretch.num_steps if worker._steady is not None else 0
    return len(worker.engine.scheduler._running[0].outputs) + of_stretch


def _bare_send(worker: ServingWorker, batch: int, context: int, model: _Stopwatch, send: Callable[[], Any]) -> float:
    """Ns that ``send`` takes in place of MPI's, over such a round."""
    watch = _Stopwatch()
    timed = watch.around(send)
    num_sent = 0

    def count(_: Line) -> None:
        nonlocal num_sent
        num_sent += 1
        timed()

    lines = worker.desk.mailbox._lines.values()
    with ExitStack() as patches:
        for line in lines:
            patches.enter_context(patch.object(line, "tell", None))
        patches.enter_context(patch.object(Line, "send", count))
        _round(worker, batch, context, model)
    return watch.total_ns / num_sent
