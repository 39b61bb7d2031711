"""What becomes of simulated requests: rows as a real run writes them, and sums that need none.

Sums are kept online in histograms of fixed size, so memory does not grow with the number of requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field
from math import log
from typing import TYPE_CHECKING, Any, Protocol

from mypy_extensions import mypyc_attr

from xpyd.records import StageRow, StepRow, TokenRow
from xpyd.request import Stage
from xpyd.simulate.costs import PS_PER_S, Stretch, to_ns
from xpyd.workload.slo import SloConfig

if TYPE_CHECKING:
    from xpyd.simulate.handoff import Moving

BUCKET_WIDTH = math.log(1.01)  # a quantile is right to one per cent


@mypyc_attr(acyclic=True)
class Flight:
    """A request under way. Times in ps; ``max_gap_ps`` is the longest gap so far that ``peaks`` does not hold."""

    __slots__ = (
        "attempt",
        "begun",
        "decode",
        "due_ps",
        "first_ps",
        "in_batch",
        "input_len",
        "last_ps",
        "max_gap_ps",
        "moving",
        "num_seen",
        "num_tokens",
        "output_len",
        "prefill",
        "prompt",
        "recorded",
        "request_id",
        "since_step",
    )

    def __init__(self, request_id: int, input_len: int, output_len: int, due_ps: int, recorded: bool) -> None:
        self.request_id = request_id
        self.input_len = input_len
        self.output_len = output_len
        self.due_ps = due_ps
        self.recorded = recorded
        self.prefill = -1  # instance numbers
        self.decode = -1
        self.attempt = 0
        self.num_seen = 0  # tokens of this attempt
        self.num_tokens = 0  # that the client has
        self.first_ps = -1
        self.last_ps = -1
        self.max_gap_ps = 0
        self.since_step = 0  # the peaks of its decode instance count from this step on
        self.begun = False  # prefill, in this attempt
        self.in_batch = False  # of a decode or colocated instance
        self.moving: Moving | None = None  # its hand-off
        self.prompt = range(input_len)  # of a prompt only its length matters


class Histogram:
    """Counts of durations in buckets that are one per cent wide, with exact sum, number and maximum."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.num = 0
        self.sum_ps = 0
        self.max_ps = 0

    def add(self, duration_ps: int, num: int = 1) -> None:
        bucket = int(log(duration_ps) / BUCKET_WIDTH) if duration_ps > 0 else 0
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + num
        self.num += num
        self.sum_ps += duration_ps * num
        if duration_ps > self.max_ps:
            self.max_ps = duration_ps

    def add_steps(self, stretch: Stretch, first: int, last: int, num: int) -> None:
        """The duration of each step of ``stretch`` from ``first`` to ``last``, ``num`` times."""
        shortest = stretch.first_ps + stretch.slope_ps * first
        longest = shortest + stretch.slope_ps * (last - first)
        bucket = int(log(longest) / BUCKET_WIDTH)
        if last > first and int(log(shortest) / BUCKET_WIDTH) != bucket:
            middle = (first + last) // 2
            self.add_steps(stretch, first, middle, num)
            self.add_steps(stretch, middle + 1, last, num)
            return
        steps = last - first + 1
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + num * steps
        self.num += num * steps
        self.sum_ps += num * ((shortest + longest) * steps // 2)
        if longest > self.max_ps:
            self.max_ps = longest

    def state(self) -> tuple[dict[int, int], int, int, int]:
        """All of it, to be compared: counts by bucket, number, sum and maximum."""
        return dict(self._counts), self.num, self.sum_ps, self.max_ps

    def quantile_s(self, share: float) -> float:
        """The value that ``share`` of all do not exceed, to one per cent; NaN of none."""
        if not self.num:
            return math.nan
        left = max(1, math.ceil(share * self.num))
        for bucket in sorted(self._counts):
            left -= self._counts[bucket]
            if left <= 0:
                return min(math.exp((bucket + 0.5) * BUCKET_WIDTH), self.max_ps) / PS_PER_S
        raise AssertionError("counts do not add up")

    @property
    def mean_s(self) -> float:
        return self.sum_ps / self.num / PS_PER_S if self.num else math.nan


class Peaks:
    """The longest gap of an instance's decode steps since any earlier step: a stack that only falls."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._gaps: list[int] = []

    def push(self, step: int, gap_ps: int) -> None:
        steps, gaps = self._steps, self._gaps
        while gaps and gaps[-1] <= gap_ps:
            steps.pop()
            gaps.pop()
        steps.append(step)
        gaps.append(gap_ps)

    def since(self, step: int) -> int:
        """The longest gap of ``step`` and all after it; 0 where none was."""
        place = bisect_left(self._steps, step)
        return self._gaps[place] if place < len(self._steps) else 0

    def clear(self) -> None:
        self._steps.clear()
        self._gaps.clear()


@dataclass
class Totals:
    """A block in sums. Durations in ps."""

    num_requests: int = 0
    num_finished: int = 0
    num_failed: int = 0
    num_retries: int = 0
    num_tokens: int = 0
    num_met: int = 0  # finished within both limits
    num_met_tokens: int = 0  # of those
    num_preempted: int = 0
    kv_bytes: int = 0
    ttft: Histogram = field(default_factory=Histogram)
    itl: Histogram = field(default_factory=Histogram)
    e2e: Histogram = field(default_factory=Histogram)
    transfer: Histogram = field(default_factory=Histogram)
    exposed: Histogram = field(default_factory=Histogram)


class Sink(Protocol):
    """Where rows go: a ``run_dir.RowWriter`` or a list in a test."""

    def write(self, row: Any) -> None: ...


class Account:
    """One block's account. ``sink`` None: no rows at all; ``with_steps``: a row for every step too."""

    def __init__(self, block: int, slo: SloConfig, sink: Sink | None, with_steps: bool, begin_ns: int) -> None:
        self.totals = Totals()
        self.with_steps = with_steps
        self.block = block
        self._ttft_ps, self._itl_ps = slo.ttft_s * PS_PER_S, slo.itl_s * PS_PER_S
        self._sink = sink
        self._begin_ns = begin_ns
        self.tell_ps = 0  # until the client has a token

    def ns(self, time_ps: int) -> int:
        return self._begin_ns + to_ns(time_ps)

    def write(self, row: Any) -> None:
        assert self._sink is not None
        self._sink.write(row)

    def stamp(self, flight: Flight, stage: Stage, rank: int, time_ps: int, reason: str = "") -> None:
        if flight.recorded:
            number = flight.request_id
            self.write(StageRow(self.block, number, stage.value, rank, self.ns(time_ps), reason))

    def step(self, rank: int, role: str, begin_ps: int, end_ps: int, counts: tuple[int, ...]) -> None:
        """One engine step; ``counts`` are the last eight columns of ``StepRow``."""
        self.write(StepRow(self.block, rank, role, self.ns(begin_ps), self.ns(end_ps), *counts))

    def token(self, flight: Flight, rank: int, time_ps: int) -> bool:
        """One token of an attempt is out; False where an earlier attempt had brought it already."""
        flight.num_seen += 1
        if flight.num_seen <= flight.num_tokens:
            return False
        if flight.recorded:
            had_ns, emitted_ns = self.ns(time_ps + self.tell_ps), self.ns(time_ps)
            number, index = flight.request_id, flight.num_tokens
            self.write(TokenRow(self.block, number, index, 0, had_ns, emitted_ns, rank, 1.0))
        flight.num_tokens += 1
        return True

    def first(self, flight: Flight, rank: int, time_ps: int) -> None:
        """Token 0 of an attempt, or the first after a preemption."""
        if not self.token(flight, rank, time_ps):
            return
        if flight.first_ps < 0:
            flight.first_ps = time_ps
            self.totals.ttft.add(time_ps + self.tell_ps - flight.due_ps)
        else:
            self.gap(flight, time_ps)
        flight.last_ps = time_ps

    def gap(self, flight: Flight, time_ps: int) -> None:
        """A gap that is this request's own, and no step of a batch."""
        gap_ps = time_ps - flight.last_ps
        self.totals.itl.add(gap_ps)
        if gap_ps > flight.max_gap_ps:
            flight.max_gap_ps = gap_ps

    def finished(self, flight: Flight, rank: int, time_ps: int) -> None:
        totals = self.totals
        totals.num_finished += 1
        totals.num_tokens += flight.output_len
        totals.e2e.add(time_ps + self.tell_ps - flight.due_ps)
        ttft_ps = flight.first_ps + self.tell_ps - flight.due_ps
        if ttft_ps <= self._ttft_ps and flight.max_gap_ps <= self._itl_ps:
            totals.num_met += 1
            totals.num_met_tokens += flight.output_len
        if flight.recorded:
            self.stamp(flight, Stage.FINISHED, 0, time_ps + self.tell_ps)

    def failed(self, flight: Flight, time_ps: int, reason: str) -> None:
        self.totals.num_failed += 1
        self.stamp(flight, Stage.FAILED, 0, time_ps, reason)
