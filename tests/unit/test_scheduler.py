"""Schedulers step by step on small pools: who runs, who waits, who is preempted, and what is refused."""

from __future__ import annotations

from typing import get_args

import pytest

from xpyd.placement import Role
from xpyd.scheduler.base import NeverFits, Scheduler
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import Policy, SchedulerConfig
from xpyd.scheduler.decode_only import DecodeOnlyScheduler
from xpyd.scheduler.prefill_first import PrefillFirstScheduler
from xpyd.scheduler.registry import SCHEDULERS, build_scheduler
from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.scheduler.static import StaticScheduler


def config(policy: Policy = "chunked", seqs: int = 4, tokens: int = 8, blocks: int = 100) -> SchedulerConfig:
    return SchedulerConfig(policy, seqs, tokens, block_size=4, num_kv_blocks=blocks)


def sequence(request_id: int, input_len: int, output_len: int = 4) -> Sequence:
    return Sequence(request_id, [7] * input_len, output_len)


def step(scheduler: Scheduler) -> StepPlan:
    """One step of an engine whose model always answers token 1."""
    plan = scheduler.schedule()
    sampling = [c.sequence.request_id for c in (*plan.decodes, *plan.prefills) if c.samples]
    for ended in scheduler.commit(plan, dict.fromkeys(sampling, 1)):
        scheduler.release(ended)
    return plan


def shape(plan: StepPlan) -> tuple[list[tuple[int, int, int]], list[int]]:
    """(request, start, num_tokens) of each prefill chunk, and the requests that decode."""
    prefills = [(c.sequence.request_id, c.start, c.num_tokens) for c in plan.prefills]
    return prefills, [c.sequence.request_id for c in plan.decodes]


def test_chunked_runs_decodes_first_and_fills_the_rest_with_chunks() -> None:
    scheduler = ChunkedScheduler(config(tokens=8))
    scheduler.add(sequence(0, input_len=4))
    scheduler.add(sequence(1, input_len=13))
    assert shape(step(scheduler)) == ([(0, 0, 4), (1, 0, 4)], [])
    assert shape(step(scheduler)) == ([(1, 4, 7)], [0])
    scheduler.add(sequence(2, input_len=20))
    assert shape(step(scheduler)) == ([(1, 11, 2), (2, 0, 5)], [0])
    assert shape(step(scheduler)) == ([(2, 5, 6)], [0, 1])


def test_the_last_single_token_of_a_prompt_is_prefill() -> None:
    scheduler = ChunkedScheduler(config(tokens=8))
    scheduler.add(sequence(0, input_len=9))
    step(scheduler)
    assert shape(step(scheduler)) == ([(0, 8, 1)], [])


def test_prefill_first_stalls_decodes_and_keeps_prompts_whole() -> None:
    scheduler = PrefillFirstScheduler(config("prefill_first", tokens=8))
    for request_id, input_len in enumerate((5, 3, 2)):
        scheduler.add(sequence(request_id, input_len))
    assert shape(step(scheduler)) == ([(0, 0, 5), (1, 0, 3)], [])
    assert shape(step(scheduler)) == ([(2, 0, 2)], [])
    assert shape(step(scheduler)) == ([], [0, 1, 2])
    scheduler.add(sequence(3, input_len=20))  # longer than the budget: alone, and still whole
    assert shape(step(scheduler)) == ([(3, 0, 20)], [])


def test_static_admits_nobody_until_the_whole_batch_has_ended() -> None:
    scheduler = StaticScheduler(config("static", seqs=2, tokens=8))
    for request_id, output_len in enumerate((2, 4, 3)):
        scheduler.add(sequence(request_id, input_len=5, output_len=output_len))
    assert shape(step(scheduler)) == ([(0, 0, 5)], [])  # both have seats, and 5 + 5 tokens are two steps
    assert shape(step(scheduler)) == ([(1, 0, 5)], [])
    assert shape(step(scheduler)) == ([], [0, 1])  # request 0 ends
    assert scheduler.num_running == 1
    assert shape(step(scheduler)) == ([], [1])  # a seat is free, and request 2 waits on
    assert shape(step(scheduler)) == ([], [1])
    assert shape(step(scheduler)) == ([(2, 0, 5)], [])


def test_static_computes_a_preempted_sequence_again_in_the_next_batch() -> None:
    scheduler = StaticScheduler(config("static", tokens=16, blocks=4))
    scheduler.add(sequence(0, input_len=4, output_len=6))
    scheduler.add(sequence(1, input_len=4, output_len=8))
    plans = [step(scheduler) for _ in range(6)]
    assert [s.request_id for s in plans[-1].preempted] == [1]
    assert shape(plans[-1]) == ([], [0])
    assert shape(step(scheduler)) == ([(1, 0, 9)], [])


def test_seats_are_limited() -> None:
    scheduler = ChunkedScheduler(config(seqs=2))
    for request_id in range(3):
        scheduler.add(sequence(request_id, input_len=1, output_len=2))
    assert shape(step(scheduler)) == ([(0, 0, 1), (1, 0, 1)], [])
    assert shape(step(scheduler)) == ([], [0, 1])
    assert shape(step(scheduler)) == ([(2, 0, 1)], [])


def test_admission_leaves_a_block_for_those_that_grow_and_nobody_overtakes() -> None:
    scheduler = ChunkedScheduler(config(blocks=4))
    scheduler.add(sequence(0, input_len=4))
    scheduler.add(sequence(1, input_len=12))  # 3 of 4 blocks; one more must stay free for request 0
    scheduler.add(sequence(2, input_len=4))
    assert shape(step(scheduler)) == ([(0, 0, 4)], [])
    assert [s.request_id for s in scheduler.waiting] == [1, 2]


def test_prompts_of_a_prefill_instance_may_fill_the_pool() -> None:
    scheduler = build_scheduler(config(blocks=5), Role.PREFILL)
    scheduler.add(sequence(0, input_len=7, output_len=1))
    scheduler.add(sequence(1, input_len=9, output_len=1))
    assert shape(step(scheduler)) == ([(0, 0, 7), (1, 0, 1)], [])


def test_preemption_takes_the_youngest_and_recomputes_its_outputs_too() -> None:
    scheduler = ChunkedScheduler(config(tokens=16, blocks=4))
    old, young = sequence(0, input_len=4, output_len=6), sequence(1, input_len=4, output_len=8)
    scheduler.add(old)
    scheduler.add(young)
    step(scheduler)
    behind = sequence(2, input_len=8)
    scheduler.add(behind)
    for _ in range(4):
        assert not step(scheduler).preempted
    plan = step(scheduler)  # both have 8 tokens with KV and need a third block; all four are taken
    assert shape(plan) == ([], [0])
    assert plan.preempted == [young]
    assert (young.num_computed, young.block_table, len(young.outputs)) == (0, [], 5)
    assert scheduler.waiting == (young, behind)
    assert shape(step(scheduler)) == ([(1, 0, 9)], [])  # request 0 ended; prompt and five outputs once more
    assert len(young.outputs) == 6


def test_a_request_that_can_never_fit_is_refused_with_the_reason() -> None:
    scheduler = ChunkedScheduler(config(blocks=4))
    with pytest.raises(NeverFits, match=r"request 0 needs 5 KV blocks of 4 tokens \(12 input, 6 output.*num_kv_blocks"):
        scheduler.add(sequence(0, input_len=12, output_len=6))
    scheduler.add(sequence(0, input_len=12, output_len=5))  # 16 tokens with KV: the last output needs none
    while scheduler.num_running or scheduler.num_waiting:
        assert not step(scheduler).empty
    assert scheduler.num_free_blocks == 4


def test_a_finished_sequence_holds_its_blocks_until_release() -> None:
    scheduler = build_scheduler(config(blocks=3), Role.PREFILL)
    held = sequence(0, input_len=8, output_len=1)
    scheduler.add(held)
    plan = scheduler.schedule()
    assert scheduler.commit(plan, {0: 1}) == [held]
    assert (scheduler.num_running, scheduler.num_free_blocks, len(held.block_table)) == (0, 1, 2)
    scheduler.add(sequence(1, input_len=8, output_len=1))
    assert scheduler.schedule().empty
    scheduler.release(held)
    assert shape(scheduler.schedule()) == ([(1, 0, 8)], [])


def test_abort_forgets_a_request_wherever_it_is() -> None:
    scheduler = ChunkedScheduler(config(seqs=1))
    for request_id in range(2):
        scheduler.add(sequence(request_id, input_len=4))
    step(scheduler)
    assert scheduler.abort(1)
    assert scheduler.abort(0)
    assert not scheduler.abort(0)
    assert (scheduler.num_waiting, scheduler.num_running, scheduler.num_free_blocks) == (0, 0, 100)


def arrived(scheduler: Scheduler, request_id: int, input_len: int, output_len: int = 4) -> Sequence:
    """A sequence whose prompt's KV has landed in a reserved table, with the first token from elsewhere."""
    table = scheduler.reserve(-(-input_len // 4))
    assert table is not None
    return Sequence(request_id, [7] * input_len, output_len, [1], input_len, table)


def test_an_admitted_sequence_decodes_at_once() -> None:
    scheduler = build_scheduler(config(), Role.DECODE)
    landed = arrived(scheduler, 0, input_len=8)
    scheduler.admit(landed)
    assert shape(step(scheduler)) == ([], [0])
    assert len(landed.block_table) == 3
    assert landed.outputs == [1, 1]


def test_reserve_pushes_back() -> None:
    scheduler = build_scheduler(config(seqs=3, blocks=5), Role.DECODE)
    first = arrived(scheduler, 0, input_len=8)
    assert scheduler.reserve(3) is None  # 3 are free, one of them for request 0, which is not even admitted
    second = arrived(scheduler, 1, input_len=8)
    scheduler.admit(first)
    scheduler.admit(second)
    plan = step(scheduler)  # one free block for two that grow: the younger starts over
    assert plan.preempted == [second]
    assert scheduler.reserve(1) is None  # a waiting sequence goes first
    with pytest.raises(NeverFits, match="6 KV blocks are to arrive, the pool has 5"):
        scheduler.reserve(6)


def test_reserved_tables_count_as_seats() -> None:
    scheduler = build_scheduler(config(seqs=1), Role.DECODE)
    landed = arrived(scheduler, 0, input_len=4)
    assert scheduler.reserve(1) is None
    scheduler.admit(landed)
    assert scheduler.reserve(1) is None
    scheduler.release(landed)
    assert scheduler.reserve(1) is not None


def test_blocks_reserved_ahead_ask_for_no_seat_and_no_room_to_grow() -> None:
    scheduler = build_scheduler(config(seqs=1, blocks=5), Role.DECODE)
    first = arrived(scheduler, 0, input_len=8)
    assert scheduler.reserve(3) is None
    table = scheduler.reserve(3, ahead=True)
    assert table is not None
    assert scheduler.num_reserved_blocks == 5
    assert scheduler.reserve(1, ahead=True) is None, "no block is free"
    assert scheduler.can_admit
    scheduler.admit(first)
    assert scheduler.num_reserved_blocks == 3
    assert not scheduler.can_admit, "the second has its blocks, and waits for a seat"
    scheduler.release(first)
    assert scheduler.can_admit
    scheduler.admit(Sequence(1, [7] * 12, 4, [1], 12, table))
    assert scheduler.num_reserved_blocks == 0


def test_a_decode_instance_takes_no_prompts() -> None:
    with pytest.raises(AssertionError, match="reserve and admit"):
        build_scheduler(config(), Role.DECODE).add(sequence(0, 4))


def test_every_policy_is_registered_and_roles_get_theirs() -> None:
    assert set(SCHEDULERS) == set(get_args(Policy))
    assert isinstance(build_scheduler(config("prefill_first"), Role.COLOCATED), PrefillFirstScheduler)
    assert isinstance(build_scheduler(config("chunked"), Role.PREFILL), ChunkedScheduler)
    assert isinstance(build_scheduler(config("prefill_first"), Role.DECODE), DecodeOnlyScheduler)


def test_a_budget_below_the_seats_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens=3 is below max_num_seqs=4"):
        config(seqs=4, tokens=3)


def test_quarantine_strands_what_waits_for_more_than_is_left() -> None:
    scheduler = ChunkedScheduler(config(blocks=8, seqs=1))
    moving = sequence(0, 20, 1)  # 5 blocks, which a lost rank may still read
    for each in (moving, sequence(1, 12), sequence(2, 8)):  # 4 and 3 blocks in all
        scheduler.add(each)
    scheduler.commit(step(scheduler), {})
    assert scheduler.stranded() == {}
    scheduler.halt(moving)
    scheduler.release(moving, reuse=False)
    assert scheduler.num_quarantined == 5
    ((request_id, reason),) = scheduler.stranded().items()
    assert request_id == 1
    assert "needs 4 KV blocks" in reason
    assert "the pool has 3 and 5 in quarantine" in reason
