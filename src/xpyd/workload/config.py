"""The workload: which requests a block offers and when, from one seed. Both arms of a pair get identical requests.

Every random quantity has a numpy Generator of its own, spawned from (seed, pair), so that changing the arrival rate
leaves the lengths as they were, and changing one class leaves the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le

from xpyd.request import Request
from xpyd.workload.arrivals import ArrivalConfig
from xpyd.workload.lengths import LengthConfig, Tokens
from xpyd.workload.prefixes import Prefix, PrefixConfig
from xpyd.workload.summary import ClassSummary, WorkloadSummary, summarise_rows
from xpyd.workload.traces import Trace, TraceConfig

SHARE_TOLERANCE = 1e-6


class Stream(IntEnum):
    """The random quantities of a block, each with a Generator of its own."""

    ARRIVALS = 0
    CLASSES = 1
    PROMPTS = 2
    LENGTHS = 3
    PREFIXES = 4


def spawn_generator(seed: int, pair: int, stream: Stream) -> np.random.Generator:
    """The generator of one random quantity of the blocks of ``pair``."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(pair, stream)))


@dataclass(frozen=True)
class ClassConfig:
    """One kind of request in a mix: its share of all requests, and its lengths.

    With a ``prefix`` every prompt begins with one of a few shared beginnings, and ``input_len`` is what comes behind.
    """

    name: str
    share: Annotated[float, Gt(0), Le(1)]
    input_len: LengthConfig
    output_len: LengthConfig
    prefix: PrefixConfig | None = None
    priority: int = 0  # with scheduler.eviction=priority the KV of lower ones goes first

    def draw(self, generator: np.random.Generator, num: int) -> tuple[list[int], list[int]]:
        """``num`` input lengths and ``num`` output lengths, each from a stream of its own."""
        inputs, outputs = generator.spawn(2)
        own = self.input_len.build().draw(inputs, num) + self.prefix_len
        return own.tolist(), self.output_len.build().draw(outputs, num).tolist()

    @property
    def prefix_len(self) -> int:
        """Tokens of a prompt that it shares."""
        return self.prefix.prefix_len if self.prefix is not None else 0

    def max_tokens(self) -> int:
        """Input and output tokens of the longest request that ``draw`` can give."""
        return self.prefix_len + self.input_len.build().longest() + self.output_len.build().longest()

    def summary(self) -> ClassSummary:
        mean_input = self.prefix_len + self.input_len.build().mean()
        return ClassSummary(self.name, self.share, mean_input, self.output_len.build().mean())


@dataclass(frozen=True)
class WorkloadConfig:
    """Requests from a mix of ``classes`` or from a ``trace``.

    ``arrival`` null means the trace's own times; with both, lengths come from the trace and times from the process.
    ``input_len`` and ``output_len`` fix that length in every class; both together make one class, named "fixed".
    """

    num_requests: Annotated[int, Gt(0)]  # in each block
    seed: Annotated[int, Ge(0)] = 0
    arrival: ArrivalConfig | None = None
    classes: tuple[ClassConfig, ...] = ()
    trace: TraceConfig | None = None
    input_len: Tokens | None = None
    output_len: Tokens | None = None

    def __post_init__(self) -> None:
        if self.trace is None:
            self._check_mix()
        else:
            self._check_trace(self.trace)

    @property
    def concurrency(self) -> int | None:
        """Requests under way at once in a closed loop; None in an open one."""
        return self.arrival.concurrency if self.arrival else None

    @property
    def arrivals_s(self) -> float:
        """Seconds in which a block's requests arrive, on average; 0 in a closed loop. Reads the trace: TraceError."""
        rate_rps = self.summary().rate_rps
        return self.num_requests / rate_rps if rate_rps else 0.0

    def build(self, pair: int, first_id: int = 0, begin_ns: int = 0) -> list[Request]:
        """The requests of one block, in arrival order; the same for every block of ``pair``, whenever it begins.

        Of a trace, pair k plays the k-th run of ``num_requests`` rows. Raises TraceError, and ValueError as ``check``.
        """
        lengths = self._draw_lengths(pair) if self.trace is None else self._read_lengths(pair)
        seeds = self._stream(pair, Stream.PROMPTS).integers(2**32, size=self.num_requests).tolist()
        requests = [
            Request(number, begin_ns + offset_ns, input_len, output_len, class_name, seed)
            for number, (offset_ns, (input_len, output_len, class_name), seed) in enumerate(
                zip(self._offsets_ns(pair), lengths, seeds, strict=True), first_id
            )
        ]
        return requests if self.trace is not None else self._with_prefixes(requests, pair)

    def _with_prefixes(self, requests: list[Request], pair: int) -> list[Request]:
        """Each with a prefix of its class. The prefixes are those of every pair, which one a request has is drawn."""
        classes = {cls.name: cls for cls in self._mix}
        if all(cls.prefix is None and cls.priority == 0 for cls in classes.values()):
            return requests
        drawn: dict[str, list[Prefix]] = {}
        for number, (name, cls) in enumerate(classes.items()):
            if cls.prefix is not None:
                generator = self._stream(pair, Stream.PREFIXES).spawn(number + 1)[number]
                seeds = np.random.SeedSequence(self.seed, spawn_key=(Stream.PREFIXES, number))
                drawn[name] = cls.prefix.draw(generator, seeds, len(requests))
        return [
            replace(
                request,
                priority=classes[request.class_name].priority,
                prefix_len=drawn[request.class_name][i].num_tokens if request.class_name in drawn else 0,
                prefix_seed=drawn[request.class_name][i].seed if request.class_name in drawn else 0,
            )
            for i, request in enumerate(requests)
        ]

    def check(self, num_pairs: int) -> None:
        """Refuse a trace that is too short to give every one of ``num_pairs`` its own rows. Raises ValueError."""
        needed = num_pairs * self.num_requests
        if self.trace is not None and len(self._trace_used.rows) < needed:
            raise ValueError(
                f"num_requests={self.num_requests}: {num_pairs} pairs take {needed} rows, trace {self.trace.path} has "
                f"{len(self._trace_used.rows)} left after its options; lower num_requests or the number of pairs"
            )

    def max_tokens(self) -> int:
        """Input and output tokens of the longest request that any block can have. Reads the trace: TraceError."""
        if self.trace is None:
            return max(cls.max_tokens() for cls in self._mix)
        return max(row.input_len + row.output_len for row in self._trace_used.rows)

    def summary(self) -> WorkloadSummary:
        """Exact means of a mix; of a trace, the means over all rows that its options leave. Raises TraceError."""
        rate_rps = self.arrival.rate_rps if self.arrival else None
        if self.trace is None:
            return WorkloadSummary(tuple(cls.summary() for cls in self._mix), rate_rps)
        used = self._trace_used
        if self.arrival is None:
            rate_rps = self.trace.rate_rps(used.rows)
        return WorkloadSummary(summarise_rows(used.rows), rate_rps, used.num_empty, used.num_too_long)

    @property
    def _mix(self) -> tuple[ClassConfig, ...]:
        """The classes after ``input_len`` and ``output_len``."""
        mix = self.classes
        if self.input_len is not None:
            mix = tuple(replace(cls, input_len=LengthConfig("fixed", self.input_len)) for cls in mix)
        if self.output_len is not None:
            mix = tuple(replace(cls, output_len=LengthConfig("fixed", self.output_len)) for cls in mix)
        if self.input_len is not None and self.output_len is not None:
            mix = (replace(mix[0], name="fixed", share=1.0),)
        return mix

    @cached_property
    def _trace_used(self) -> Trace:
        assert self.trace is not None
        return self.trace.load()

    def _offsets_ns(self, pair: int) -> list[int]:
        if self.arrival is not None:
            return self.arrival.offsets_ns(self._stream(pair, Stream.ARRIVALS), self.num_requests)
        assert self.trace is not None
        return self.trace.offsets_ns(self._trace_used.rows[self._slice(pair)])

    def _draw_lengths(self, pair: int) -> list[tuple[int, int, str]]:
        """(input_len, output_len, class name) of each request of a mix; each request's class is drawn by share."""
        num, mix = self.num_requests, self._mix
        shares = np.array([cls.share for cls in mix])
        chosen = self._stream(pair, Stream.CLASSES).choice(len(mix), size=num, p=shares / shares.sum())
        # Each class draws for every request, used or not: its lengths do not depend on the other classes.
        drawn = [cls.draw(self._stream(pair, Stream.LENGTHS), num) for cls in mix]
        return [(drawn[c][0][i], drawn[c][1][i], mix[c].name) for i, c in enumerate(chosen.tolist())]

    def _read_lengths(self, pair: int) -> list[tuple[int, int, str]]:
        """The same, of the rows of a trace."""
        self.check(pair + 1)
        rows = self._trace_used.rows[self._slice(pair)]
        return [(row.input_len, row.output_len, row.class_name) for row in rows]

    def _slice(self, pair: int) -> slice:
        return slice(pair * self.num_requests, (pair + 1) * self.num_requests)

    def _stream(self, pair: int, stream: Stream) -> np.random.Generator:
        return spawn_generator(self.seed, pair, stream)

    def _check_mix(self) -> None:
        if self.arrival is None:
            raise ValueError("arrival is null and there is no trace to take the times from; set arrival.kind")
        names = [cls.name for cls in self.classes]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"classes={names}: give at least one class, each with a name of its own, or a trace")
        total = sum(cls.share for cls in self.classes)
        if not math.isclose(total, 1, abs_tol=SHARE_TOLERANCE):
            shares = ", ".join(f"{cls.name} {cls.share:g}" for cls in self.classes)
            raise ValueError(f"the shares of classes ({shares}) sum to {total:g}; make them sum to 1")

    def _check_trace(self, trace: TraceConfig) -> None:
        for name in ("classes", "input_len", "output_len"):
            if getattr(self, name):
                raise ValueError(f"{name} is set beside trace.path={trace.path}, whose rows have lengths; unset it")
        if self.arrival is not None and trace.rate_scale != 1:
            raise ValueError(
                f"trace.rate_scale={trace.rate_scale}: arrival.kind={self.arrival.kind} replaces the trace's times; "
                "set arrival to null, or rate_scale to 1"
            )
