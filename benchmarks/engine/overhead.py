"""What a real worker's step costs beside the model: schedule, segments, packing, commit, rows, and the token message.

A ``ServingWorker`` with a real scheduler, mailbox (MPI, to itself) and row writer decodes a batch; the model's time,
sampling included, is taken inside it, and the rest of the step is the overhead.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
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


class _Stopwatch:
    """Sums the time of calls."""

    def __init__(self) -> None:
        self.total_ns = 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            begin = perf_counter_ns()
            result = call(*arguments)
            self.total_ns += perf_counter_ns() - begin
            return result

        return timed


def measure(runner: ModelRunner, batch: int, context: int, num_steps: int) -> Overhead:
    """Decode ``batch`` requests of ``context`` tokens for ``num_steps`` steps in a worker of one rank."""
    config = SchedulerConfig("chunked", batch, 4096, runner.cache.block_size, runner.cache.layout.num_blocks)
    mailbox, model = Mailbox(MPI.COMM_SELF), _Stopwatch()
    steps: list[tuple[int, int]] = []  # ns of the whole, of the model in it
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(runner, "_forward", model.around(runner._forward)),
        patch.object(CompiledSteps, "run", model.around(CompiledSteps.run)),
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
        scheduler = worker.engine.scheduler
        while scheduler.num_running < batch or not all(sequence.decoding for sequence in scheduler.running):
            _step(worker, mailbox)
        gc.disable()
        for _ in range(WARM_UP + num_steps):
            begin, model_ns = perf_counter_ns(), model.total_ns
            _step(worker, mailbox)
            steps.append((perf_counter_ns() - begin, model.total_ns - model_ns))
        gc.enable()
        mailbox.drain()
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


def _step(worker: ServingWorker, mailbox: Mailbox) -> None:
    for _ in mailbox.poll():  # the tokens that it told itself, in place of messages from a client
        pass
    worker.step()
