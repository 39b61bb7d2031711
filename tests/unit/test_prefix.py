"""The prefix cache against a memory that knows what every slot holds: nothing stale is read, nothing shared is written.

The memory runs the moves and the steps of real schedulers. A slot holds the tokens up to its position, so that KV of
another sequence, of another position, or overwritten KV is seen at once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpyd.kv.entries import Wanted, block_keys
from xpyd.kv.eviction import POLICIES, EvictionPolicy, Use
from xpyd.kv.prefix import PrefixCache
from xpyd.placement import Role
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.config import Policy, SchedulerConfig
from xpyd.scheduler.registry import build_scheduler
from xpyd.scheduler.sequence import Sequence, StepPlan

SIZE = 4
Block = list[tuple[int, ...]]


def config(
    blocks: int = 12, host: int = 0, policy: Policy = "chunked", eviction: EvictionPolicy = "lru", seqs: int = 4
):
    return SchedulerConfig(policy, seqs, 8, SIZE, blocks, True, eviction, host)


@dataclass
class Memory:
    """Runs a scheduler as an engine would; the next token of a sequence is a function of all tokens before it."""

    scheduler: Scheduler
    pool: list[Block]
    host: list[Block]
    computed: int = 0
    moved: Counter[str] = field(default_factory=Counter)

    @staticmethod
    def of(settings: SchedulerConfig, role: Role = Role.COLOCATED) -> Memory:
        empty: Block = [()] * SIZE
        pool = [list(empty) for _ in range(settings.num_kv_blocks)]
        return Memory(build_scheduler(settings, role), pool, [list(empty) for _ in range(settings.num_host_blocks)])

    def move(self) -> None:
        arenas = {"pool": self.pool, "host": self.host}
        for from_tier, source, to_tier, destination in self.scheduler.take_moves():
            self.moved[f"{from_tier} {to_tier}"] += 1
            arenas[to_tier][destination] = list(arenas[from_tier][source])

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule()
        self.move()
        tokens = {}
        for chunk in (*plan.decodes, *plan.prefills):
            known = chunk.sequence.prompt + chunk.sequence.outputs
            self.check(chunk.sequence.block_table, known, chunk.start)
            self.write(chunk.sequence.block_table, known, chunk.start, chunk.start + chunk.num_tokens)
            if chunk.samples:
                tokens[chunk.sequence.request_id] = next_token(known)
            self.computed += chunk.num_tokens
        for sequence in self.scheduler.commit(plan, tokens):
            self.scheduler.release(sequence)
        return plan

    def check(self, table: list[int], known: list[int], end: int) -> None:
        found = [self.pool[table[i // SIZE]][i % SIZE] for i in range(end)]
        assert found == [tuple(known[: i + 1]) for i in range(end)], "KV of other tokens is read"

    def write(self, table: list[int], known: list[int], start: int, end: int) -> None:
        for position in range(start, end):
            self.pool[table[position // SIZE]][position % SIZE] = tuple(known[: position + 1])

    def drain(self) -> None:
        for _ in range(2000):
            if not self.scheduler.num_running and not self.scheduler.num_waiting:
                return
            assert not self.step().empty
        raise AssertionError("the load does not end")


def next_token(known: list[int]) -> int:
    return sum(known) % 3


def run(memory: Memory, request_id: int, prompt: list[int], output_len: int = 1, priority: int = 0) -> Sequence:
    sequence = Sequence(request_id, prompt, output_len, priority=priority)
    memory.scheduler.add(sequence)
    memory.drain()
    return sequence


def test_a_block_key_depends_on_everything_before_it() -> None:
    keys = block_keys(list(range(9)), SIZE, [])
    assert len(keys) == 2
    assert block_keys(list(range(12)), SIZE, list(keys))[:2] == keys
    assert block_keys([9, *range(1, 8)], SIZE, [])[1] != keys[1]
    content = b"".join(token.to_bytes(4, "little") for token in range(4))
    assert keys[0] == blake2b(content, digest_size=16).digest(), "the same on every rank and in every run"


def test_a_shared_prefix_is_computed_once() -> None:
    memory = Memory.of(config())
    system = [1, 2, 3, 4, 5, 6, 7, 8]
    run(memory, 0, [*system, 9, 9])
    memory.computed = 0
    second = run(memory, 1, [*system, 7, 7, 7])
    assert (second.num_cached, memory.computed) == (8, 3)


def test_sequences_that_run_together_hold_the_same_blocks() -> None:
    memory = Memory.of(config())
    sequences = [Sequence(i, [1, 2, 3, 4, 5 + i], 6) for i in range(2)]
    memory.scheduler.add(sequences[0])
    memory.step()
    memory.scheduler.add(sequences[1])
    memory.step()
    assert sequences[0].block_table[0] == sequences[1].block_table[0]
    assert sequences[0].block_table[1] != sequences[1].block_table[1]
    assert memory.scheduler.num_free_blocks == 12 - 3
    memory.scheduler.abort(0)
    assert memory.scheduler.num_free_blocks == 12 - 2, "the shared block is still held"
    memory.drain()


def test_a_prompt_that_is_cached_whole_computes_its_last_token_in_a_copy() -> None:
    memory = Memory.of(config())
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    run(memory, 0, prompt)
    again = Sequence(1, prompt, 1)
    memory.scheduler.add(again)
    original = memory.scheduler._cache.find(block_keys(prompt, SIZE, [])[1])  # type: ignore[union-attr]
    plan = memory.scheduler.schedule()
    assert [(c.start, c.num_tokens) for c in plan.prefills] == [(7, 1)]
    assert again.block_table[1] != original
    assert memory.scheduler.take_moves() == [("pool", original, "pool", again.block_table[1])]


def test_prompts_that_part_inside_a_block_share_its_beginning_by_copy() -> None:
    memory = Memory.of(config())
    run(memory, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    other = run(memory, 1, [1, 2, 3, 4, 5, 6, 0, 0, 0])
    assert other.num_cached == 6
    assert memory.moved["pool pool"] == 1


def test_the_copys_source_survives_a_full_pool() -> None:
    """The only free blocks are the cached ones: one is the source of a copy and must not be its destination."""
    memory = Memory.of(config(blocks=3))
    run(memory, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert run(memory, 1, [1, 2, 3, 4, 5, 6, 0, 0, 0]).num_cached == 4, "no room for the source beside its copy"
    roomy = Memory.of(config(blocks=4))
    run(roomy, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert run(roomy, 1, [1, 2, 3, 4, 5, 6, 0, 0, 0]).num_cached == 6


def test_a_preempted_sequence_finds_its_own_blocks() -> None:
    memory = Memory.of(config(blocks=4, seqs=2))
    old, young = Sequence(0, [1] * 4, 6), Sequence(1, [2] * 4, 8)
    memory.scheduler.add(old)
    memory.scheduler.add(young)
    while not memory.step().preempted:
        pass
    memory.drain()
    assert young.num_cached >= SIZE
    assert (len(old.outputs), len(young.outputs)) == (6, 8)


def test_quarantined_blocks_are_shared_but_never_written_again() -> None:
    memory = Memory.of(config(blocks=4))
    held = Sequence(0, [1, 2, 3, 4, 5], 1)
    memory.scheduler.add(held)
    plan = memory.scheduler.schedule()
    memory.write(held.block_table, held.prompt, 0, 5)
    memory.scheduler.commit(plan, {0: 0})
    memory.scheduler.release(held, reuse=False)
    assert memory.scheduler.num_free_blocks == 2
    assert run(memory, 1, [1, 2, 3, 4, 6]).num_cached == 4
    run(memory, 2, [7] * 8)
    assert memory.scheduler.num_free_blocks == 2
    assert memory.pool[held.block_table[0] if held.block_table else 0][3] == (1, 2, 3, 4)


def test_a_landing_table_skips_what_is_here_but_never_its_last_block() -> None:
    memory = Memory.of(config(), Role.DECODE)
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    first = land(memory, 0, prompt)
    assert first == 0
    assert land(memory, 1, prompt) == 1
    assert land(memory, 2, [*prompt, 9]) == 2
    memory.drain()
    assert memory.scheduler.num_free_blocks == 12


def land(memory: Memory, request_id: int, prompt: list[int]) -> int:
    """KV of a prompt arrives, but for the blocks that are here; returns how many these are."""
    table = memory.scheduler.reserve(-(-len(prompt) // SIZE), prompt=prompt)
    assert table is not None
    memory.move()
    num_here = memory.scheduler.num_here(table, prompt)
    memory.write(table, prompt, num_here * SIZE, len(prompt))
    memory.check(table, prompt, len(prompt))
    memory.scheduler.admit(Sequence(request_id, prompt, 3, [next_token(prompt)], len(prompt), table))
    return num_here


def test_an_evicted_block_comes_back_from_the_host() -> None:
    memory = Memory.of(config(blocks=4, host=4))
    run(memory, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    run(memory, 1, [0] * 16)
    assert memory.moved["pool host"] == 2
    back = run(memory, 2, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9])
    assert (back.num_cached, back.num_promoted, memory.moved["host pool"]) == (8, 2, 2)


def test_what_is_cheaper_computed_is_neither_demoted_nor_promoted() -> None:
    memory = Memory.of(config(blocks=4, host=4))
    memory.scheduler = build_scheduler(config(blocks=4, host=4), Role.COLOCATED, lambda start, num_blocks: False)
    run(memory, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    run(memory, 1, [0] * 16)
    assert run(memory, 2, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]).num_cached == 0
    assert not memory.moved


@pytest.mark.parametrize(("policy", "kept"), [("lru", 1), ("priority", 2), ("expected_completion", 0)])
def test_policies_choose_their_own_victim(policy: EvictionPolicy, kept: int) -> None:
    """Prompt 0 was used three times in a row, 2 has priority and is the oldest, 1 is the newest: one of them stays."""
    memory = Memory.of(config(blocks=6, eviction=policy))
    prompts = [[i] * 5 for i in range(3)]
    run(memory, 0, prompts[2], priority=1)
    for request_id in range(1, 4):
        run(memory, request_id, prompts[0])
    run(memory, 4, prompts[1])
    run(memory, 5, [9] * 20)  # five blocks of six: three are empty, two of the three cached ones go
    cache = memory.scheduler._cache
    assert cache is not None
    found = [i for i, prompt in enumerate(prompts) if cache.find(block_keys(prompt, SIZE, [])[0]) is not None]
    assert found == [kept]


def test_scores_by_hand() -> None:
    use = Use(first=10, claimed=40, last=50, num_reuses=3, priority=2)
    assert POLICIES["lru"](use) == (50,)
    assert POLICIES["priority"](use) == (2, 50)
    assert POLICIES["expected_completion"](use)[0] == pytest.approx(50 + 10 * 1.3862943611)  # gap 10, ln(3 + 1)
    assert POLICIES["expected_completion"](Use(10, 10, 50))[0] == 50


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)
LOADS = st.lists(st.tuples(PROMPTS, st.integers(1, 6), st.integers(0, 2), st.booleans()), min_size=1, max_size=12)


@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(["chunked", "prefill_first"]),
    st.sampled_from(sorted(POLICIES)),
    LOADS,
    st.integers(5, 9),
    st.sampled_from([0, 3, 8]),
    st.integers(1, 4),
)
def test_no_kv_is_stale_and_no_block_is_lost(
    policy: Policy,
    eviction: EvictionPolicy,
    load: list[tuple[list[int], int, int, bool]],
    blocks: int,
    host: int,
    seqs: int,
) -> None:
    """Any load, with preemption and aborts: every token is the right one, and the blocks are conserved."""
    memory = Memory.of(config(blocks, host, policy, eviction, seqs))
    sequences = [Sequence(i, prompt, n, priority=p) for i, (prompt, n, p, _) in enumerate(load)]
    for sequence, (*_, aborts) in zip(sequences, load, strict=True):
        memory.scheduler.add(sequence)
        memory.step()
        check_cache(memory)
        if aborts:
            memory.scheduler.abort(sequence.request_id)
            check_cache(memory)
    memory.drain()
    check_cache(memory)
    assert memory.scheduler.num_free_blocks == blocks
    for sequence, (prompt, num_outputs, _, aborts) in zip(sequences, load, strict=True):
        known = list(prompt)
        for _ in range(num_outputs):
            known.append(next_token(known))
        expected = known[len(prompt) :]
        assert sequence.outputs == expected[: len(sequence.outputs)]
        assert aborts or sequence.outputs == expected


def check_cache(memory: Memory) -> None:
    """No block is both free and held, counts are right, and whatever is findable can be reached."""
    cache = memory.scheduler._cache
    assert cache is not None
    held = Counter(block for sequence in memory.scheduler._known.values() for block in sequence.block_table)
    assert dict(held) == {block: n for block, n in enumerate(cache._refcounts) if n}
    assert not held.keys() & (set(cache._free) | cache._idle.keys())
    assert len(held) + cache.num_free == cache.num_blocks
    for tier in (cache, cache._host):
        if tier is None:
            continue
        assert {block: tier._blocks[entry.key] for block, entry in tier._entries.items()} == {
            b: b for b in tier._entries
        }
        assert set(tier._idle) == {b for b in tier._entries if not tier._refcounts[b]}
        assert len(set(tier._free) | tier._idle.keys()) == tier.num_free
        for entry in tier._entries.values():
            assert entry.num_children == sum(e.parent == entry.key for e in tier._entries.values())
    assert all(e.parent in cache._blocks for e in cache._entries.values() if e.depth), "an orphan was left"


@settings(max_examples=60, deadline=None)
@given(LOADS, st.sampled_from(sorted(POLICIES)), st.sampled_from([0, 4]))
def test_two_runs_evict_alike(
    load: list[tuple[list[int], int, int, bool]], eviction: EvictionPolicy, host: int
) -> None:
    def tables() -> list[list[int]]:
        memory = Memory.of(config(6, host, eviction=eviction))
        found = []
        for i, (prompt, num_outputs, priority, _) in enumerate(load):
            sequence = Sequence(i, prompt, num_outputs, priority=priority)
            memory.scheduler.add(sequence)
            memory.step()
            found.append(list(sequence.block_table))
        return found

    assert tables() == tables()


def test_the_heap_of_leaves_stays_small() -> None:
    cache = PrefixCache(4, SIZE)
    tokens = list(range(9))
    for _ in range(100):
        placed = cache.place(Wanted(tokens, block_keys(tokens, SIZE, [])), 3, 0)
        assert placed is not None
        for index in range(2):
            cache.publish(placed.table[index], Wanted(tokens, block_keys(tokens, SIZE, [])), index)
        cache.free(placed.table)
    assert len(cache._leaves) <= 2 * 4 + 1
