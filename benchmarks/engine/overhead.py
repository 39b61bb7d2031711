"""What a real worker's step costs beside the model: schedule, segments, packing, commit, rows, and the token message.

A ``ServingWorker`` with a real scheduler, mailbox (MPI, to itself) and row writer decodes a batch. The model's time,
sampling included, is taken inside it without what the worker does between layers; the rest of a turn of the worker's
loop is the overhead. What the worker tells goes to itself in place of a client. To take it in is the client's work: it
is done while the model runs, where it leaves caches as the model leaves them, and its time is taken off.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any
from unittest.mock import patch

from xpyd.clock import Clock
from xpyd.faults import FaultConfig
from xpyd.model.compiled import CompiledSteps
from xpyd.model.runner import ModelRunner
from xpyd.model.sampling import sample
from xpyd.mpi import MPI
from xpyd.placement import Role
from xpyd.run_dir import RowWriter, RunDir
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.sequence import Sequence
from xpyd.streams import FOLDER
from xpyd.worker.base import Desk
from xpyd.worker.engine import Engine
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import Message
from xpyd.worker.serving import ServingWorker

WARM_UP = 5


@dataclass(frozen=True)
class Overhead:
    """Medians over steps, seconds; ``share`` is the median of the share of each step."""

    model: str
    batch: int
    context: int
    num_steps: int
    step_s: float
    beside_s: float
    share: float


class _Post(Mailbox):
    """What the worker sends is for its client to poll, not for itself."""

    def __init__(self) -> None:
        super().__init__(MPI.COMM_SELF)
        self.client = Mailbox(MPI.COMM_SELF)

    def send_all(self, ranks: Iterable[int], message: Message) -> None:
        self.client.send_all(ranks, message)


class _Stopwatch:
    """Sums the time of calls, without that of ``other`` calls within them."""

    def __init__(self, other: _Stopwatch | None = None) -> None:
        self.total_ns = 0
        self._other = other

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            other = self._other.total_ns if self._other is not None else 0
            begin = perf_counter_ns()
            result = call(*arguments)
            self.total_ns += perf_counter_ns() - begin
            if self._other is not None:
                self.total_ns -= self._other.total_ns - other
            return result

        return timed


def measure(runner: ModelRunner, batch: int, context: int, num_steps: int) -> Overhead:
    """Decode ``batch`` requests of ``context`` tokens for ``num_steps`` steps in a worker of one rank."""
    config = SchedulerConfig("chunked", batch, 4096, runner.cache.block_size, runner.cache.layout.num_blocks)
    mailbox, hooks, client = _Post(), _Stopwatch(), _Stopwatch()
    model = _Stopwatch(hooks)
    steps: list[tuple[int, int]] = []  # ns of the whole, of the model in it
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(runner, "_forward", model.around(runner._forward)),
        patch.object(CompiledSteps, "_advance_all", model.around(CompiledSteps._advance_all)),
        patch.object(CompiledSteps, "largest", model.around(CompiledSteps.largest)),
        patch("xpyd.model.runner.sample", model.around(sample)),
    ):
        (Path(folder) / FOLDER).mkdir()
        desk = Desk(
            0,
            0,
            mailbox,
            RowWriter(RunDir(Path(folder)), 0),
            Clock(),
            faults=FaultConfig(detect_s=600.0),
            role=Role.COLOCATED,
        )
        worker = ServingWorker(Engine(runner, ChunkedScheduler(config)), desk, drain_timeout_s=60.0)
        for i in range(batch):
            prompt = [(i + j) % runner.spec.vocab_size for j in range(context)]
            worker.add(Sequence(i, prompt, max_output_tokens=2 * (WARM_UP + num_steps) + batch))
        _take_in_between(worker, mailbox.client, client, hooks)
        scheduler = worker.engine.scheduler
        while scheduler.num_running < batch or not all(sequence.decoding for sequence in scheduler.running):
            _turn(worker)
        gc.disable()
        for _ in range(WARM_UP + num_steps):
            begin, model_ns, client_ns = perf_counter_ns(), model.total_ns, client.total_ns
            _turn(worker)
            whole = perf_counter_ns() - begin - (client.total_ns - client_ns)
            steps.append((whole, model.total_ns - model_ns))
        gc.enable()
        mailbox.client.drain()
    mailbox.client.close()
    mailbox.close()
    del steps[:WARM_UP]
    return Overhead(
        model=runner.spec.name,
        batch=batch,
        context=context,
        num_steps=num_steps,
        step_s=median(whole for whole, _ in steps) / 1e9,
        beside_s=median(whole - model for whole, model in steps) / 1e9,
        share=median(1 - model / whole for whole, model in steps),
    )


def _turn(worker: ServingWorker) -> None:
    """What the worker's loop does while there are steps to run."""
    worker.receive()
    worker.move()
    worker.step()


def _take_in_between(worker: ServingWorker, mailbox: Mailbox, client: _Stopwatch, hooks: _Stopwatch) -> None:
    """Behind the first layer of each step the client takes in what the step before told it."""

    def take(layer: int) -> None:
        if layer == 0:
            for _ in mailbox.poll():
                pass

    taken, on_layer = client.around(take), worker.on_layer

    def both(layer: int) -> None:
        taken(layer)
        on_layer(layer)

    worker.on_layer = hooks.around(both)  # type: ignore[method-assign]
