"""Expert parallelism by number of ranks, plain and optimized: steps, bytes between ranks and between nodes.

The sequences of a step are divided among the ranks of an instance. Each belongs to a domain, whose prompts use words of
their own with Zipf's frequencies: so the ranks' tokens ask for different experts, as those of a rank that serves code
and of one that serves chat do. The optimized map of experts is made from what prompts of one seed asked for, and
measured on another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter_ns, thread_time_ns
from typing import Any

import numpy as np

from xpyd.clock import wait_quietly
from xpyd.model.expert_placement import place_experts
from xpyd.model.expert_runner import ExpertRunner
from xpyd.model.group import Group
from xpyd.model.instance import group_of
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.spec import ModelSpec
from xpyd.placement import Collectives
from xpyd.records import ExpertRow
from xpyd.units import NS_PER_S
from xpyd.worker.sweeps import ExpertSweep

ALONE, PLAIN, OVERLAP, PLACED = "one rank", "contiguous", "overlapped", "placed"
VARIANTS = {PLAIN: False, OVERLAP: True, PLACED: True}  # whether the shared expert runs while tokens travel


@dataclass(frozen=True)
class Point:
    """One kind of step: ``num_seqs`` prompts of ``prompt_tokens``, or as many decodes (0)."""

    num_seqs: int
    prompt_tokens: int


@dataclass(frozen=True)
class Instance:
    """One rank's side of the instance of a width, in one variant."""

    width: int
    variant: str
    runner: ModelRunner
    exchange: Group | None
    nodes: list[str]  # of its ranks
    num_cores: int

    @property
    def rank(self) -> int:
        return 0 if self.exchange is None else self.exchange.rank

    def spent(self) -> tuple[int, int, int, int]:
        """(ns on the clock in exchanges, CPU ns there, bytes sent, of them to other nodes) so far."""
        if self.exchange is None:
            return 0, 0, 0, 0
        sent = self.exchange.num_to
        away = sum(number for number, node in zip(sent, self.nodes, strict=True) if node != self.nodes[self.rank])
        return self.exchange.meter.busy_ns, self.exchange.meter.cpu_ns, sum(sent), away


class ExpertProbe:
    """Collective to create, on all ranks of ``comm``. Ranks 1 to n are the instance of width n."""

    def __init__(
        self, comm: Any, nodes: list[str], spec: ModelSpec, sweep: ExpertSweep, collectives: Collectives
    ) -> None:
        self._comm = comm
        self._collectives = collectives
        self._spec = spec
        self._sweep = sweep
        self._points = [Point(sweep.num_prompts, n) for n in sweep.prompt_tokens]
        self._points += [Point(n, 0) for n in sweep.num_decode_seqs]
        self._instances = dict(self._build(nodes))
        self._errors = self._logit_errors()

    def measure(self, write: Callable[[ExpertRow], None]) -> None:
        """Every width, variant and kind of step, in a fresh order each repeat. Rank 1 writes; bytes are all ranks'."""
        runs = [(width, variant, point) for width, variant in self._keys() for point in self._points]
        generator = np.random.default_rng(0)
        for repeat in range(-1, self._sweep.num_repeats):  # -1: warm-up
            for which in generator.permutation(len(runs)):
                width, variant, point = runs[which]
                wait_quietly(self._comm)
                for row in self._steps(width, variant, point, repeat):
                    if repeat >= 0 and self._comm.rank == 1:
                        write(row)
        wait_quietly(self._comm)

    def _keys(self) -> list[tuple[int, str]]:
        wide = [(width, variant) for width in self._sweep.widths if width > 1 for variant in VARIANTS]
        return [(1, ALONE), *wide]

    def _build(self, nodes: list[str]) -> Iterator[tuple[tuple[int, str], Instance]]:
        """This rank's instances; the placed one after the prompts that its map is made from."""
        cores = self._comm.allgather([(nodes[self._comm.rank], core) for core in os.sched_getaffinity(0)])
        pool = self._spec, self._sweep.num_blocks, self._sweep.block_size
        for width in self._sweep.widths:
            ranks = list(range(1, width + 1))
            if self._comm.rank not in ranks:
                continue
            num_cores = len({core for rank in ranks for core in cores[rank]})
            named = self._sweep.nodes_of([nodes[rank] for rank in ranks])
            if width == 1:
                yield (1, ALONE), Instance(1, ALONE, ModelRunner(*pool), None, named, num_cores)
                continue
            owners = None
            for variant, overlap in VARIANTS.items():
                exchange = group_of(self._comm, ranks, self._collectives)
                assert exchange is not None, "several ranks"
                runner = ExpertRunner(exchange, *pool, owners=owners if variant == PLACED else None, overlap=overlap)
                made = Instance(width, variant, runner, exchange, named, num_cores)
                if variant == OVERLAP:
                    owners = self._owners(made, runner, exchange)
                yield (width, variant), made

    def _owners(self, instance: Instance, runner: ExpertRunner, group: Group) -> list[tuple[int, ...]]:
        """The map of experts from what the prompts of another seed ask for."""
        for point in self._points:
            runner.run(self._prompts(instance, point, seed=1))
        counts = np.stack(group.comm.allgather(runner.visits()))  # [num_ranks, layers of experts, num_experts]
        return [place_experts(counts[:, layer], instance.nodes) for layer in range(counts.shape[1])]

    def _prompts(self, instance: Instance, point: Point, seed: int = 0) -> list[Segment]:
        """This rank's prompts; those whose KV decodes attend to."""
        num_tokens = point.prompt_tokens or self._sweep.context_len
        return [
            Segment(self._words(n, point.num_seqs, num_tokens, seed), 0, self._table(n, num_tokens), 0, 0, True)
            for n in self._own(instance, point)
        ]

    def _segments(self, instance: Instance, point: Point) -> list[Segment]:
        """This rank's part of a step."""
        if point.prompt_tokens:
            return self._prompts(instance, point)
        start = self._sweep.context_len
        return [
            Segment(self._words(n, point.num_seqs, 1, 2), start, self._table(n, start), 0, 1, True)
            for n in self._own(instance, point)
        ]

    def _own(self, instance: Instance, point: Point) -> range:
        first, last = (point.num_seqs * rank // instance.width for rank in (instance.rank, instance.rank + 1))
        return range(first, last)

    def _words(self, number: int, num_seqs: int, num_tokens: int, seed: int) -> list[int]:
        """Tokens of the domain of sequence ``number``: word r of its vocabulary with a frequency of 1 / r."""
        sweep = self._sweep
        first = number * sweep.num_domains // num_seqs * sweep.words_per_domain
        frequency = 1 / np.arange(1, sweep.words_per_domain + 1)
        generator = np.random.default_rng((seed, number))
        drawn = generator.choice(sweep.words_per_domain, num_tokens, p=frequency / frequency.sum())
        words: list[int] = (first + drawn).tolist()
        return words

    def _table(self, number: int, num_tokens: int) -> list[int]:
        width = -(-(num_tokens + 1) // self._sweep.block_size)
        return list(range(number * width, (number + 1) * width))

    def _logit_errors(self) -> dict[tuple[int, str, Point], float]:
        """The largest difference of a logit to one rank's, over all ranks; on rank 1."""
        errors: dict[tuple[int, str, Point], float] = {}
        for point in self._points:
            expected: Any = None
            for width, variant in self._keys():
                wait_quietly(self._comm)
                instance = self._instances.get((width, variant))
                own = range(0)
                logits = None
                if instance is not None:
                    if not point.prompt_tokens:
                        instance.runner.run(self._prompts(instance, point))
                    logits = instance.runner.logits(self._segments(instance, point)).numpy()
                    own = self._own(instance, point)
                if width == 1:
                    expected = self._comm.bcast(logits, root=1)
                differs = float(np.abs(logits - expected[own]).max()) if logits is not None and len(own) else 0.0
                errors[width, variant, point] = max(self._comm.allgather(differs))
        return errors

    def _steps(self, width: int, variant: str, point: Point, repeat: int) -> Iterator[ExpertRow]:
        instance = self._instances.get((width, variant))
        if instance is None:
            return
        segments = self._segments(instance, point)
        for index in range(self._sweep.num_steps):
            before = instance.spent()
            cpu_ns, begin_ns = thread_time_ns(), perf_counter_ns()
            instance.runner.run(segments)
            step_ns, cpu_ns = perf_counter_ns() - begin_ns, thread_time_ns() - cpu_ns
            spent = [now - then for now, then in zip(instance.spent(), before, strict=True)]
            sums = spent[2:]
            if instance.exchange is not None:
                sums = [instance.exchange.comm.allreduce(nbytes) for nbytes in sums]
            yield ExpertRow(
                width=width,
                num_cores=instance.num_cores,
                num_nodes=len(set(instance.nodes)),
                variant=variant,
                num_seqs=point.num_seqs,
                prompt_tokens=point.prompt_tokens,
                repeat=repeat,
                index=index,
                step_s=step_ns / NS_PER_S,
                exchange_s=spent[0] / NS_PER_S,
                work_s=(cpu_ns - spent[1]) / NS_PER_S,
                sent_bytes=sums[0],
                cross_node_bytes=sums[1],
                logit_error=self._errors[width, variant, point],
            )
