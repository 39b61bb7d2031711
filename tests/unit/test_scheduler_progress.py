"""No live-lock, whatever the load: everything ends, blocks are conserved, and preemption does not ping-pong."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from xpyd.placement import Role
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.config import Policy, SchedulerConfig
from xpyd.scheduler.registry import build_scheduler
from xpyd.scheduler.sequence import Sequence

BLOCK_SIZE, NUM_BLOCKS = 2, 10
LENGTHS = st.tuples(st.integers(1, 10), st.integers(1, 11))  # 10 + 11 - 1 tokens: just fits the pool
LOADS = st.lists(LENGTHS, min_size=1, max_size=10)


def config(policy: Policy, seqs: int, tokens: int) -> SchedulerConfig:
    return SchedulerConfig(policy, seqs, max(tokens, seqs), BLOCK_SIZE, NUM_BLOCKS)


class Engine:
    """Runs a scheduler's plans, checks each, and counts preemptions; the n-th token of every request is n."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.held: list[Sequence] = []  # their KV is on its way into a reserved table
        self.preemptions: Counter[int] = Counter()

    def step(self) -> list[Sequence]:
        plan = self.scheduler.schedule()
        assert not plan.empty or self.held, "nothing can run, and nothing is about to land"
        chunks = [*plan.decodes, *plan.prefills]
        assert len({c.sequence.request_id for c in chunks}) == len(chunks)
        for chunk in chunks:
            assert chunk.sequence in self.scheduler.running
            assert chunk.start == chunk.sequence.num_computed
            assert chunk.num_tokens > 0
            assert chunk.start + chunk.num_tokens <= len(chunk.sequence.block_table) * BLOCK_SIZE
        self.preemptions.update(s.request_id for s in plan.preempted)
        self.check_blocks()
        tokens = {c.sequence.request_id: len(c.sequence.outputs) for c in chunks if c.samples}
        finished = self.scheduler.commit(plan, tokens)
        for sequence in finished:
            self.scheduler.release(sequence)
        return finished

    def check_blocks(self) -> None:
        tables = [s.block_table for s in (*self.scheduler.running, *self.held)]
        used = [block for table in tables for block in table]
        assert len(used) == len(set(used))
        assert len(used) + self.scheduler.num_free_blocks == NUM_BLOCKS
        assert sum(len(s.block_table) for s in self.held) == self.scheduler.num_reserved_blocks
        assert all(not s.block_table for s in self.scheduler.waiting)

    def check_end(self, ended: list[Sequence], num_requests: int) -> None:
        assert len(ended) == num_requests
        assert all(s.outputs == list(range(s.max_output_tokens)) for s in ended)
        assert self.scheduler.num_free_blocks == NUM_BLOCKS
        # A preempted sequence gets in again only after another one ended.
        assert all(count < num_requests for count in self.preemptions.values())


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["chunked", "prefill_first", "static"]),
    LOADS,
    st.integers(1, 8),
    st.integers(1, 16),
    st.integers(0, 3),
)
def test_everything_ends(policy: Policy, load: list[tuple[int, int]], seqs: int, tokens: int, gap: int) -> None:
    engine = Engine(build_scheduler(config(policy, seqs, tokens), Role.COLOCATED))
    todo = [Sequence(i, [0] * input_len, output_len) for i, (input_len, output_len) in enumerate(load)]
    ended: list[Sequence] = []
    steps = 0
    while len(ended) < len(load):
        while todo and (steps >= gap * todo[0].request_id or not engine.scheduler.num_running):
            engine.scheduler.add(todo.pop(0))
        ended += engine.step()
        steps += 1
    engine.check_end(ended, len(load))


@settings(max_examples=300, deadline=None)
@given(LOADS, st.integers(1, 8), st.integers(1, 16), st.integers(0, 3), st.booleans())
def test_a_decode_instance_drains(
    load: list[tuple[int, int]], seqs: int, tokens: int, landing: int, ahead: bool
) -> None:
    """Hand-offs land ``landing`` steps after their reservation; requests of one output never come here.

    ``ahead``: blocks are reserved before there is a seat, as a push does.
    """
    engine = Engine(build_scheduler(config("chunked", seqs, tokens), Role.DECODE))
    offers = [(i, input_len, output_len + 1) for i, (input_len, output_len) in enumerate(load) if input_len < 10]
    num_requests = len(offers)
    due: list[int] = []
    ended: list[Sequence] = []
    steps = 0
    while len(ended) < num_requests:
        while offers and (table := engine.scheduler.reserve(-(-offers[0][1] // BLOCK_SIZE), ahead)) is not None:
            request_id, input_len, output_len = offers.pop(0)
            engine.held.append(Sequence(request_id, [0] * input_len, output_len, [0], input_len, table))
            due.append(steps + landing)
        while due and (due[0] <= steps or not engine.scheduler.num_running) and engine.scheduler.can_admit:
            due.pop(0)
            engine.scheduler.admit(engine.held.pop(0))
        ended += engine.step()
        steps += 1
    engine.check_end(ended, num_requests)
