"""How a step scales with the ranks of an instance: prefill and decode steps in each way, interleaved in one run.

Ranks 1 to n form the instances of width n, with one thread each, so that n ranks use n cores where there are as many.
Ranks outside the instance that is measured sleep. One rank alone is the baseline, and its logits are the ones that
every other way's are compared with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns
from typing import Any

import numpy as np

from xpyd.clock import wait_quietly
from xpyd.model.context import ContextRunner
from xpyd.model.instance import group_of, runner_of
from xpyd.model.meter import Meter
from xpyd.model.pipeline import PipelineRunner
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.spec import ModelSpec
from xpyd.placement import Collectives, Division
from xpyd.records import ScalingRow
from xpyd.units import NS_PER_S
from xpyd.worker.interference import decode_batch
from xpyd.worker.sweeps import ScalingSweep, Way


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
    """One rank's side of the instance of a kind and width; ``meter`` counts its exchange with the others."""

    runner: ModelRunner
    meter: Meter
    num_cores: int

    def prepare(self, way: Way) -> None:
        """Choose the variant; between steps, on all ranks of the instance."""
        if isinstance(self.runner, PipelineRunner) and way.num_micro_batches is not None:
            self.runner.num_micro_batches = way.num_micro_batches
        if isinstance(self.runner, ContextRunner) and way.split is not None:
            self.runner.split = way.split

    def leader_logits(self, segments: list[Segment]) -> Any:
        """The logits of a step, a tensor on the leader; a pipeline runs it as one micro-batch."""
        logits = self.runner.logits(segments)
        return self.runner.stages.deliver(logits, lambda: None) if isinstance(self.runner, PipelineRunner) else logits


Instances = dict[Division, Instance]


def measure_scaling(
    comm: Any,
    nodes: list[str],
    spec: ModelSpec,
    sweep: ScalingSweep,
    collectives: Collectives,
    write: Callable[[ScalingRow], None],
) -> None:
    """Every way and kind of step, in a fresh order each repeat; collective. Every rank writes what it saw."""
    instances = _instances(comm, nodes, spec, sweep, collectives)
    points = [Point(n, 0) for n in sweep.prompt_tokens] + [Point(0, n) for n in sweep.num_decode_seqs]
    runs = [(way, point) for way in sweep.ways for point in points if way.fits(point.num_decode_seqs)]
    errors = _logit_errors(comm, instances, runs, sweep)
    generator = np.random.default_rng(0)
    for repeat in range(-1, sweep.num_repeats):  # -1: warm-up
        for which in generator.permutation(len(runs)):
            way, point = runs[which]
            wait_quietly(comm)
            if way.division not in instances:
                continue
            for row in _measure(instances[way.division], way, point, sweep, repeat, errors.get((way, point), 0.0)):
                if repeat >= 0:
                    write(row)
    wait_quietly(comm)


def _instances(
    comm: Any, nodes: list[str], spec: ModelSpec, sweep: ScalingSweep, collectives: Collectives
) -> Instances:
    """This rank's instances; every rank tells its cores first."""
    cores = comm.allgather([(nodes[comm.rank], core) for core in os.sched_getaffinity(0)])
    found: Instances = {}
    for division in dict.fromkeys(way.division for way in sweep.ways):
        ranks = list(range(1, division.width + 1))
        if comm.rank in ranks:
            group = group_of(comm, ranks, collectives)
            runner = runner_of(group, division, None, spec, sweep.num_blocks, sweep.block_size, in_c=False)
            num_cores = len({core for rank in ranks for core in cores[rank]})
            found[division] = Instance(runner, group.meter if group is not None else Meter(), num_cores)
    return found


def _logit_errors(
    comm: Any, instances: Instances, runs: list[tuple[Way, Point]], sweep: ScalingSweep
) -> dict[tuple[Way, Point], float]:
    """The largest difference of a logit to one rank's, on rank 1. Decodes attend to the KV of prompts run before."""
    errors: dict[tuple[Way, Point], float] = {}
    baselines: dict[Point, Any] = {}  # logits; the first way is one rank alone
    filled: set[Division] = (
        set()
    )  # pools with the contexts of the largest batch; in each way prompts come before decodes
    for way, point in runs:
        wait_quietly(comm)
        if way.division not in instances:
            continue
        instance = instances[way.division]
        instance.prepare(way)
        if point.num_decode_seqs and way.division not in filled:
            _fill(instance.runner, sweep)
            filled.add(way.division)
        logits = instance.leader_logits(point.segments(instance.runner.spec, sweep.block_size, sweep.context_len))
        if comm.rank == 1:
            errors[way, point] = float((logits - baselines.setdefault(point, logits)).abs().max())
    return errors


def _fill(runner: ModelRunner, sweep: ScalingSweep) -> None:
    """Run the prompts that the decodes of every batch attend to."""
    vocab_size = runner.spec.vocab_size
    for segment in Point(0, max(sweep.num_decode_seqs)).segments(runner.spec, sweep.block_size, sweep.context_len):
        prompt = [token % vocab_size for token in range(segment.start)]
        runner.run([Segment(prompt, 0, segment.block_table, 0, 0, False)])


def _measure(
    instance: Instance, way: Way, point: Point, sweep: ScalingSweep, repeat: int, error: float
) -> Iterator[ScalingRow]:
    segments = point.segments(instance.runner.spec, sweep.block_size, sweep.context_len)
    instance.prepare(way)
    for index in range(sweep.num_steps):
        before = instance.meter.read()
        cpu_ns, begin_ns = thread_time_ns(), perf_counter_ns()
        instance.runner.run(segments)
        step_ns, cpu_ns = perf_counter_ns() - begin_ns, thread_time_ns() - cpu_ns
        busy_ns, busy_cpu_ns, num_bytes = (now - then for now, then in zip(instance.meter.read(), before, strict=True))
        yield ScalingRow(
            kind=way.kind,
            variant=way.variant,
            num_micro_batches=way.num_micro_batches or 0,
            width=way.width,
            rank=instance.runner.member.rank,
            num_cores=instance.num_cores,
            num_prefill_tokens=point.num_prefill_tokens,
            num_decode_seqs=point.num_decode_seqs,
            repeat=repeat,
            index=index,
            step_s=step_ns / NS_PER_S,
            exchange_s=busy_ns / NS_PER_S,
            exchange_bytes=num_bytes,
            work_s=(cpu_ns - busy_cpu_ns) / NS_PER_S,
            logit_error=error,
        )
