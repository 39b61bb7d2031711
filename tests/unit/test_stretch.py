"""Stretches: steps that are planned once, and leave a scheduler as it would be had it planned each of them."""

from __future__ import annotations

import random

import pytest

from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.config import Policy, SchedulerConfig
from xpyd.scheduler.registry import SCHEDULERS
from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.scheduler.stretch import Stretch, begin_stretch

BLOCK_SIZE = 4


class Played:
    """An engine of which token t of a request is 100 * request + t; with ``max_steps`` it takes stretches."""

    def __init__(self, policy: Policy, num_blocks: int, max_steps: int = 0) -> None:
        config = SchedulerConfig(policy, 4, 8, BLOCK_SIZE, num_blocks)
        self.scheduler: Scheduler = SCHEDULERS[policy](config)
        self.max_steps = max_steps
        self.num_taken = 0  # steps of stretches
        self.num_renewed = 0
        self.num_preempted = 0
        self._stretch: Stretch | None = None
        self._tokens: list[int] = []

    def step(self) -> list[tuple[int, int]]:
        """(request, index) of every token that it yields."""
        if self._stretch is not None:
            if self._stretch.take():
                self.num_taken += 1
                made = [(s.request_id, len(s.outputs) + self._num_steps) for s in self._stretch.sequences]
                self._tokens += [100 * request + index for request, index in made]
                if self._stretch.over:
                    self._end()
                return made
            self._end()
        plan = self.scheduler.schedule()
        self.num_preempted += len(plan.preempted)
        sampling = [c.sequence for c in (*plan.decodes, *plan.prefills) if c.samples]
        made = [(s.request_id, len(s.outputs)) for s in sampling]
        for ended in self.scheduler.commit(plan, {request: 100 * request + index for request, index in made}):
            self.scheduler.release(ended)
        self._stretch = begin_stretch(self.scheduler, plan, self.max_steps)
        return made

    def state(self) -> list[tuple[object, ...]]:
        """Everything of every sequence but what a stretch puts off; that is checked where it ends."""
        scheduler = self.scheduler
        found = [(s.request_id, len(s.block_table)) for s in (*scheduler.running, *scheduler.waiting)]
        return [*found, (scheduler.num_free_blocks, scheduler.num_running)]

    @property
    def _num_steps(self) -> int:
        assert self._stretch is not None
        return len(self._tokens) // len(self._stretch.sequences)

    def _end(self) -> None:
        assert self._stretch is not None
        for ended in self._stretch.commit(self._tokens):
            self.scheduler.release(ended)
        self._stretch, self._tokens = self._stretch.again(), []
        self.num_renewed += self._stretch is not None
        for sequence in self.scheduler.running:
            assert sequence.outputs == [100 * sequence.request_id + i for i in range(len(sequence.outputs))]
            assert sequence.decoding


@pytest.mark.parametrize("num_blocks", [100, 14])
@pytest.mark.parametrize("policy", SCHEDULERS)
@pytest.mark.parametrize("seed", range(4))
def test_stretches_are_the_steps_that_the_scheduler_would_plan(policy: Policy, num_blocks: int, seed: int) -> None:
    """Requests come while others decode, are dropped while they do, end, and are preempted where blocks run out."""
    draw = random.Random(seed)
    plain, mine = Played(policy, num_blocks), Played(policy, num_blocks, max_steps=4)
    for step in range(150):
        if draw.random() < 0.08:
            lens = draw.randint(1, 12), draw.randint(1, 30)
            for each in (plain, mine):
                each.scheduler.add(Sequence(step, [7] * lens[0], lens[1]))
        if draw.random() < 0.03 and plain.scheduler.num_running:
            dropped = draw.choice(plain.scheduler.running).request_id
            assert plain.scheduler.abort(dropped)
            assert mine.scheduler.abort(dropped)
        assert plain.step() == mine.step()
        assert plain.state() == mine.state()
    assert mine.num_taken > 30
    assert plain.num_preempted == mine.num_preempted


def test_the_smaller_pool_of_these_cases_does_preempt_and_stretches_are_renewed() -> None:
    played = Played("chunked", 14, max_steps=4)
    for request in range(3):
        played.scheduler.add(Sequence(request, [7] * 8, 30))
    for _ in range(40):
        played.step()
    assert played.num_preempted
    assert played.num_renewed
    assert played.num_taken > 10


def decoding(scheduler: Scheduler, *output_lens: int) -> StepPlan:
    """The plan of the step after which all of these requests have decoded once."""
    for request, output_len in enumerate(output_lens):
        scheduler.add(Sequence(request, [7] * 3, output_len))
    for _ in range(2):
        plan = scheduler.schedule()
        scheduler.commit(plan, dict.fromkeys(range(len(output_lens)), 1))
    return plan


def scheduler_of(policy: Policy = "chunked", prefix_cache: bool = False) -> Scheduler:
    return SCHEDULERS[policy](SchedulerConfig(policy, 4, 16, BLOCK_SIZE, 100, prefix_cache=prefix_cache))


def test_a_stretch_ends_with_the_first_sequence_or_its_bound() -> None:
    scheduler = scheduler_of()
    stretch = begin_stretch(scheduler, decoding(scheduler, 7, 20), 64)
    assert stretch is not None
    grown = []
    while not stretch.over:
        assert stretch.take() == 1
        grown.append(stretch.grown)
    assert grown == [[0, 1], [], [], [], [0, 1]]  # 4 tokens of each have KV: the next one begins a block
    assert [s.request_id for s in stretch.commit([1, 2] * 5)] == [0]
    assert [len(s.outputs) for s in scheduler.running] == [7]
    bounded = begin_stretch(scheduler_two := scheduler_of(), decoding(scheduler_two, 20), 2)
    assert bounded is not None
    assert [bounded.take(), bounded.over, bounded.take(), bounded.over, bounded.take()] == [1, False, 1, True, 0]


@pytest.mark.parametrize("change", ["add", "reserve", "unreserve", "abort", "halt"])
def test_whatever_comes_or_goes_ends_a_stretch(change: str) -> None:
    scheduler = scheduler_of()
    table = scheduler.reserve(1)
    assert table is not None
    stretch = begin_stretch(scheduler, decoding(scheduler, 20, 20), 64)
    assert stretch is not None
    assert (stretch.take(), stretch.grown) == (1, [0, 1])
    match change:
        case "add":
            scheduler.add(Sequence(9, [7], 2))
        case "reserve":
            assert scheduler.reserve(1) is not None
        case "unreserve":
            scheduler.unreserve(table)
        case "abort":
            assert scheduler.abort(1)
        case _:
            scheduler.halt(scheduler.running[0])
    assert stretch.take() == 0


def test_steps_that_are_taken_at_once_and_not_run_leave_no_trace() -> None:
    one, many = scheduler_of(), scheduler_of()
    ours, theirs = (begin_stretch(each, decoding(each, 30, 30), 64) for each in (many, one))
    assert ours is not None
    assert theirs is not None
    assert ours.take(7) == 7
    assert ours.grown == [0, 1, 0, 1]
    ours.give_back(4)
    assert [theirs.take() for _ in range(3)] == [1, 1, 1]
    for steps in (3, 9):
        assert ours.num_steps == theirs.num_steps == steps
        assert ours.num_free_blocks == theirs.num_free_blocks
        assert many.num_free_blocks == one.num_free_blocks
        assert [len(s.block_table) for s in ours.sequences] == [len(s.block_table) for s in theirs.sequences]
        assert ours.take(6) == 6
        assert [theirs.take() for _ in range(6)] == [1] * 6


def test_steps_are_taken_as_far_as_there_are_blocks_and_room_in_tables() -> None:
    scheduler = SCHEDULERS["chunked"](SchedulerConfig("chunked", 4, 16, BLOCK_SIZE, 3))
    stretch = begin_stretch(scheduler, decoding(scheduler, 9, 9), 64)
    assert stretch is not None
    assert stretch.take(8) == 0, "both begin a block, and one is left"
    assert (scheduler.num_free_blocks, stretch.grown, stretch.over) == (1, [], False)
    wide = begin_stretch(scheduler_two := scheduler_of(), decoding(scheduler_two, 30), 64)
    assert wide is not None
    assert [wide.take(8, 1), wide.take(8, 2), wide.take(8, 2), wide.take(8, 3)] == [0, 4, 0, 4]
    assert len(wide.sequences[0].block_table) == 3


def test_no_stretch_follows_where_the_next_step_may_be_another() -> None:
    cached, own = scheduler_of(prefix_cache=True), scheduler_of()
    assert begin_stretch(cached, decoding(cached, 20), 64) is None
    plan = decoding(own, 3, 20)
    assert begin_stretch(own, plan, 0) is None
    own.add(Sequence(5, [7] * 3, 9))
    with_prompt = own.schedule()
    own.commit(with_prompt, dict.fromkeys((0, 1, 5), 1))
    assert begin_stretch(own, with_prompt, 64) is None

    class Moody(type(own)):  # type: ignore[misc] - of whoever registers a scheduler that says nothing
        plans_again = False

    moody = Moody(own.config)
    assert begin_stretch(moody, decoding(moody, 20), 64) is None
