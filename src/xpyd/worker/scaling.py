"""How a step scales with the ranks of an instance: prefill and decode steps at each width, interleaved in one run.

Ranks 1 to n form the instance of width n, with one thread each, so that n ranks use n cores where there are as many.
Ranks outside the width that is measured sleep. Width 1 has no reducer: it is the baseline, and its logits are the ones
that every other width is compared with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns
from typing import Any

import numpy as np

from xpyd.clock import wait_quietly
from xpyd.model.parallel import TimedReducer, reducer_of
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.spec import ModelSpec
from xpyd.records import ScalingRow
from xpyd.units import NS_PER_S
from xpyd.worker.interference import decode_batch
from xpyd.worker.sweeps import ScalingSweep


@dataclass(frozen=True)
class Point:
    """One kind of step: a prompt of ``num_prefill_tokens``, or ``num_decode_seqs`` decodes."""

    num_prefill_tokens: int
    num_decode_seqs: int

    def segments(self, spec: ModelSpec, block_size: int, context_len: int) -> list[Segment]:
        if self.num_decode_seqs:
            return decode_batch(spec.vocab_size, block_size, self.num_decode_seqs, context_len, context_len + 1)
        prompt = [token % spec.vocab_size for token in range(self.num_prefill_tokens)]
        return [Segment(prompt, 0, list(range(-(-len(prompt) // block_size))), 0, 0, True)]


@dataclass(frozen=True)
class Instance:
    """One rank's side of the instance of a width."""

    runner: ModelRunner
    width: int
    reducer: TimedReducer | None
    num_cores: int


def measure_scaling(
    comm: Any,
    nodes: list[str],
    spec: ModelSpec,
    sweep: ScalingSweep,
    write: Callable[[ScalingRow], None],
) -> None:
    """Every width and kind of step, in a fresh order each repeat; collective. Rank 1, the leader of all, writes."""
    instances = _instances(comm, nodes, spec, sweep)
    points = [Point(n, 0) for n in sweep.prompt_tokens] + [Point(0, n) for n in sweep.num_decode_seqs]
    runs = [(width, point) for width in sweep.widths for point in points]
    errors = _logit_errors(comm, instances, points, sweep)
    generator = np.random.default_rng(0)
    for repeat in range(-1, sweep.num_repeats):  # -1: warm-up
        for which in generator.permutation(len(runs)):
            width, point = runs[which]
            wait_quietly(comm)
            if width not in instances:
                continue
            for row in _measure(instances[width], point, sweep, repeat, errors.get((width, point), 0.0)):
                if repeat >= 0 and comm.rank == 1:
                    write(row)
    wait_quietly(comm)


def _instances(comm: Any, nodes: list[str], spec: ModelSpec, sweep: ScalingSweep) -> dict[int, Instance]:
    """This rank's instances, by width; every rank tells its cores first."""
    cores = comm.allgather([(nodes[comm.rank], core) for core in os.sched_getaffinity(0)])
    found: dict[int, Instance] = {}
    for width in sweep.widths:
        ranks = list(range(1, width + 1))
        if comm.rank in ranks:
            inner = reducer_of(comm, ranks)
            reducer = TimedReducer(inner) if inner is not None else None
            runner = ModelRunner(spec, sweep.num_blocks, sweep.block_size, reducer=reducer)
            found[width] = Instance(runner, width, reducer, len({core for rank in ranks for core in cores[rank]}))
    return found


def _logit_errors(
    comm: Any, instances: dict[int, Instance], points: list[Point], sweep: ScalingSweep
) -> dict[tuple[int, Point], float]:
    """The largest difference of a logit to width 1, on rank 1. Decodes attend to the KV of a prompt run before."""
    errors: dict[tuple[int, Point], float] = {}
    for point in points:
        baseline = None
        for width in sorted(sweep.widths):
            wait_quietly(comm)
            if width not in instances:
                continue
            runner = instances[width].runner
            if point.num_decode_seqs:
                for segment in point.segments(runner.spec, sweep.block_size, sweep.context_len):
                    prompt = [token % runner.spec.vocab_size for token in range(segment.start)]
                    runner.run([Segment(prompt, 0, segment.block_table, 0, 0, False)])
            logits = runner.logits(point.segments(runner.spec, sweep.block_size, sweep.context_len))
            if comm.rank == 1:
                baseline = logits if baseline is None else baseline
                errors[width, point] = float((logits - baseline).abs().max())
    return errors


def _measure(instance: Instance, point: Point, sweep: ScalingSweep, repeat: int, error: float) -> Iterator[ScalingRow]:
    segments = point.segments(instance.runner.spec, sweep.block_size, sweep.context_len)
    reducer = instance.reducer
    for index in range(sweep.num_steps):
        before = _spent(reducer)
        cpu_ns, begin_ns = thread_time_ns(), perf_counter_ns()
        instance.runner.run(segments)
        step_ns, cpu_ns = perf_counter_ns() - begin_ns, thread_time_ns() - cpu_ns
        busy_ns, reduce_cpu_ns, num_bytes = (now - then for now, then in zip(_spent(reducer), before, strict=True))
        yield ScalingRow(
            width=instance.width,
            num_cores=instance.num_cores,
            num_prefill_tokens=point.num_prefill_tokens,
            num_decode_seqs=point.num_decode_seqs,
            repeat=repeat,
            index=index,
            step_s=step_ns / NS_PER_S,
            reduce_s=busy_ns / NS_PER_S,
            reduce_bytes=num_bytes,
            work_s=(cpu_ns - reduce_cpu_ns) / NS_PER_S,
            logit_error=error,
        )


def _spent(reducer: TimedReducer | None) -> tuple[int, int, int]:
    return (0, 0, 0) if reducer is None else reducer.meter.read()
