"""What every scheduler shares: sequences, the plan of one step, admission by free blocks, preemption by recompute.

Pure policy: ints and dataclasses only, no tensors and no ranks. A concrete scheduler decides one thing, how a step's
token budget is filled (``schedule``). The engine's loop is ``plan = schedule(); run(plan); commit(...)``.

No live-lock: waiting sequences are admitted in order and none is overtaken, the youngest running one is preempted
first, and the oldest therefore always moves. A preempted sequence goes back to the front, and its blocks fit again
only after some older sequence has ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Mapping
from typing import ClassVar

from xpyd.kv.blocks import BlockAllocator
from xpyd.kv.entries import Below, BlockMove, Fetch, Placed, Wanted, block_keys
from xpyd.kv.prefix import PrefixCache
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.sequence import Chunk, Sequence, StepPlan


class NeverFits(ValueError):
    """A request that the whole pool could not hold; waiting would not help. The message says what would."""


class Scheduler(ABC):
    """Queues, blocks and seats of one engine. Oldest first in ``waiting`` and ``running``.

    A sequence ends in ``commit`` but keeps its blocks until ``release``: a prefill instance still has to send them.
    """

    plans_again: ClassVar[bool] = False  # ``schedule`` plans decodes alone once more while ``num_changes`` stays

    def __init__(self, config: SchedulerConfig, fetch: Fetch | None = None) -> None:
        """``fetch`` decides on blocks of the host tier; without it they always come back."""
        self.config = config
        self._cache = _prefix_cache(config, fetch) if config.prefix_cache else None
        self._blocks: BlockAllocator = self._cache or BlockAllocator(config.num_kv_blocks, config.block_size)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._known: dict[int, Sequence] = {}  # every sequence that waits, runs or holds blocks
        self._num_reserved = 0  # tables handed out by reserve() whose sequence is not admitted yet
        self._num_reserved_blocks = 0  # blocks in them
        self._quarantined: set[int] = set()  # blocks that a lost rank may still read or write
        self._placed: list[Sequence] = []  # looked up in the prefix cache since ``take_placed``
        self.num_changes = 0  # sequences that came or went, and tables set aside or taken back, but by ``schedule``

    @abstractmethod
    def schedule(self) -> StepPlan:
        """Decide the next step: admits, allocates blocks, preempts. Empty when nothing can run now."""

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def total_blocks(self) -> int:
        return self._blocks.num_blocks

    @property
    def num_free_blocks(self) -> int:
        return self._blocks.num_free

    @property
    def num_reserved_blocks(self) -> int:
        """Blocks set aside for KV that is on its way, or has landed and waits for a seat."""
        return self._num_reserved_blocks

    @property
    def num_quarantined(self) -> int:
        return len(self._quarantined)

    @property
    def quarantined(self) -> frozenset[int]:
        """Blocks that are never handed out again."""
        return frozenset(self._quarantined)

    @property
    def can_admit(self) -> bool:
        """A seat is free for a sequence whose table is reserved; always, unless it was reserved ``ahead``."""
        return len(self._running) < self.config.max_num_seqs

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        return tuple(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence. Raises NeverFits when prompt and output together exceed the pool."""
        assert sequence.prompt, f"request {sequence.request_id} has an empty prompt"
        assert not sequence.block_table, f"request {sequence.request_id} has blocks already: admit it"
        self._register(sequence)
        self._waiting.append(sequence)

    def reserve(self, num_blocks: int, ahead: bool = False, prompt: list[int] | None = None) -> list[int] | None:
        """Blocks for KV that is about to arrive, to be admitted later; None while there is no room (back-pressure).

        Room is a free seat, no preempted sequence waiting (it goes first), and ``num_blocks`` free blocks beside
        one for every sequence that may still grow. ``ahead`` asks for the blocks alone: no seat is kept
        (``can_admit``), nor room to grow. With a prefix cache the front of the table holds what is here already of
        ``prompt`` (``num_here``). Raises NeverFits when the pool has not as many blocks.
        """
        if num_blocks > self._capacity:
            raise NeverFits(
                f"{num_blocks} KV blocks are to arrive, the pool has {self._capacity}; raise "
                "scheduler.num_kv_blocks or shorten the request"
            )
        preempted = bool(self._waiting and self._waiting[0].outputs)
        if preempted or (not ahead and not self._seat_free()):
            return None
        table = self._reserve(num_blocks, 0 if ahead else self._headroom(), prompt)
        if table is not None:
            self.num_changes += 1
            self._num_reserved += 1
            self._num_reserved_blocks += num_blocks
        return table

    def num_here(self, table: list[int], prompt: list[int]) -> int:
        """Leading blocks of a table that was reserved for ``prompt`` whose KV is here already; never its last one."""
        if self._cache is None:
            return 0
        keys = block_keys(prompt, self.config.block_size, [])
        here = [self._cache.find(key) == block for key, block in zip(keys, table[:-1], strict=False)]
        return here.index(False) if False in here else len(here)

    def send_below(self, below: Below, fetch: Fetch | None) -> None:
        """Blocks that the lowest tier evicts go to ``below``, where ``fetch`` says that they would come back."""
        assert self._cache is not None, "no blocks are cached"
        self._cache.evict_to(below, fetch)

    def num_findable(self, sequence: Sequence) -> int:
        """Leading blocks of a new sequence that the pool and the host tier have; never the one with its last token."""
        return 0 if self._cache is None else self._cache.findable(self._wanted(sequence))

    def place_fetched(self, sequence: Sequence, num_blocks: int) -> Placed | None:
        """Hold the first blocks of a new sequence: those behind ``num_shared`` are to be fetched. None: no room."""
        assert self._cache is not None, "no blocks are cached"
        return self._cache.place_landing(self._wanted(sequence), num_blocks, self._headroom(), last_lands=False)

    def keep_fetched(self, sequence: Sequence, placed: Placed, landed: bool) -> None:
        """Let go of these blocks; where what was fetched has ``landed``, it is found when the sequence is queued."""
        assert self._cache is not None, "no blocks are cached"
        wanted = self._wanted(sequence)
        for index in range(placed.num_shared, len(placed.table) if landed else 0):
            if not self._cache.publish(placed.table[index], wanted, index):
                break
        self._blocks.free(placed.table)

    def take_placed(self) -> list[Sequence]:
        """The sequences that were given blocks since the last call, with what the prefix cache had of them."""
        placed, self._placed = self._placed, []
        return placed

    def take_moves(self) -> list[BlockMove]:
        """Copies of blocks that must be made before the next step, and before KV lands in a reserved table."""
        return self._cache.take_moves() if self._cache is not None else []

    def admit(self, sequence: Sequence) -> None:
        """Run a sequence whose prompt's KV arrived in a reserved table. Raises NeverFits, see ``add``."""
        assert self._num_reserved, f"request {sequence.request_id} is admitted without a reserved table"
        assert sequence.decoding, f"request {sequence.request_id} is not ready to decode"
        self._register(sequence)
        self._num_reserved -= 1
        self._num_reserved_blocks -= len(sequence.block_table)
        self._running.append(sequence)
        self._publish(sequence)

    def commit(self, plan: StepPlan, new_tokens: Mapping[int, int]) -> list[Sequence]:
        """Record a step that was run: ``new_tokens[request_id]`` for each chunk that samples.

        Returns the sequences that are finished; they run no more and hold their blocks until ``release``.
        """
        finished = []
        for chunk in (*plan.decodes, *plan.prefills):
            sequence = chunk.sequence
            sequence.num_computed += chunk.num_tokens
            if self._cache is not None:
                self._publish(sequence)
            if sequence.num_computed == len(sequence.prompt) + len(sequence.outputs):  # the chunk samples
                sequence.outputs.append(new_tokens[sequence.request_id])
            if len(sequence.outputs) >= sequence.max_output_tokens:
                self._running.remove(sequence)
                finished.append(sequence)
        return finished

    def grow_ahead(self, sequence: Sequence, num_tokens: int) -> int:
        """Room for up to ``num_tokens`` guessed tokens behind the newest of a decoding sequence; for how many.

        Takes only blocks that the others do not need to grow, and preempts nobody: a guess is never worth that.
        """
        num_tokens = min(num_tokens, sequence.max_kv_tokens - sequence.num_tokens)
        table, spare = sequence.block_table, self.num_free_blocks - self._headroom()
        missing = self._blocks.blocks_for(sequence.num_tokens + num_tokens) - len(table)
        table.extend(self._blocks.allocate(max(0, min(missing, spare))))
        return min(num_tokens, len(table) * self._blocks.block_size - sequence.num_tokens)

    def extend(self, sequence: Sequence, tokens: list[int]) -> bool:
        """After ``commit``: guessed ``tokens`` behind the new one came true; whether the sequence is finished by them.

        Their KV is there. Blocks that ``grow_ahead`` took for the guesses that did not come true are free again.
        """
        sequence.outputs += tokens
        sequence.num_computed += len(tokens)
        num_blocks = self._blocks.blocks_for(sequence.num_tokens)
        self._blocks.free(sequence.block_table[num_blocks:])
        del sequence.block_table[num_blocks:]
        if tokens and sequence.finished:
            self._running.remove(sequence)
            return True
        return False

    def release(self, sequence: Sequence, reuse: bool = True) -> None:
        """Forget a sequence, wherever it is, and free its blocks. It must not be part of a step that still runs.

        Without ``reuse`` they go into quarantine: somebody who cannot be reached may still be using them.
        """
        self.halt(sequence)
        del self._known[sequence.request_id]
        if reuse:
            self._free(sequence)
        else:
            self._quarantined |= set(sequence.block_table)

    def halt(self, sequence: Sequence) -> None:
        """Take a sequence out of its queue; it keeps its blocks until ``release``, as a finished one does."""
        self.num_changes += 1
        if sequence in self._running:
            self._running.remove(sequence)
        if sequence in self._waiting:
            self._waiting.remove(sequence)

    def unreserve(self, table: list[int], reuse: bool = True) -> None:
        """Take back a table that ``reserve`` gave: its KV does not come. ``reuse`` as in ``release``."""
        assert self._num_reserved, "no table is reserved"
        self.num_changes += 1
        self._num_reserved -= 1
        self._num_reserved_blocks -= len(table)
        if reuse:
            self._blocks.free(table)
        else:
            self._quarantined |= set(table)

    def withhold(self, blocks: Collection[int]) -> None:
        """Put free blocks into quarantine: those of an earlier scheduler of the same pool."""
        self._blocks.take(blocks)
        self._quarantined |= set(blocks)

    def find(self, request_id: int) -> Sequence | None:
        """A sequence that waits, runs or holds blocks."""
        return self._known.get(request_id)

    def abort(self, request_id: int) -> bool:
        """Release a request by its id; False when it is not known here (it may have ended already)."""
        sequence = self._known.get(request_id)
        if sequence is not None:
            self.release(sequence)
        return sequence is not None

    def check_fits(self, request_id: int, num_input: int, num_output: int) -> None:
        """Raises NeverFits where all tokens of a request together exceed the pool; the last output has no KV."""
        needed = self._blocks.blocks_for(num_input + num_output - 1)
        if needed > self._capacity:
            without = f" and {len(self._quarantined)} in quarantine" if self._quarantined else ""
            raise NeverFits(
                f"request {request_id} needs {needed} KV blocks of {self._blocks.block_size} tokens ({num_input} "
                f"input, {num_output} output tokens), the pool has {self._capacity}{without}; raise "
                "scheduler.num_kv_blocks or shorten the request"
            )

    def stranded(self) -> dict[int, str]:
        """Waiting requests that the pool cannot hold any more, and why: blocks went into quarantine behind them."""
        found = {}
        for sequence in self._waiting:
            try:
                self.check_fits(sequence.request_id, len(sequence.prompt), sequence.max_output_tokens)
            except NeverFits as error:
                found[sequence.request_id] = str(error)
        return found

    def _plan_decodes(self) -> tuple[list[Chunk], list[Sequence]]:
        """One token for every decoding sequence, oldest first, and the sequences preempted to make room."""
        decodes: list[Chunk] = []
        preempted: list[Sequence] = []
        todo = deque([sequence for sequence in self._running if sequence.decoding])
        block_size = self._blocks.block_size
        while todo:
            sequence = todo.popleft()
            while sequence.num_computed == len(sequence.block_table) * block_size and not self._grow(sequence):
                victim = self._preempt_youngest()
                preempted.append(victim)
                if victim is sequence:
                    break
                if todo and todo[-1] is victim:
                    todo.pop()
            else:
                decodes.append(Chunk(sequence, sequence.num_computed, 1))
        return decodes, preempted

    def _next_admitted(self) -> Sequence | None:
        """Move the first waiting sequence to running, with blocks for all its known tokens; None when it must wait.

        The blocks of a whole prompt are taken at once, so that a prompt under way never has to preempt.
        """
        if not self._waiting or not self._seat_free():
            return None
        if not self._place(self._waiting[0], self._headroom()):
            return None
        sequence = self._waiting.popleft()
        self._running.append(sequence)
        return sequence

    def _place(self, sequence: Sequence, spare: int) -> bool:
        """Give a sequence blocks for all its known tokens, cached ones first; False where ``spare`` would not stay."""
        num_blocks = self._blocks.blocks_for(sequence.num_tokens)
        if self._cache is None:
            if num_blocks + spare > self.num_free_blocks:
                return False
            sequence.block_table = self._blocks.allocate(num_blocks)
            return True
        placed = self._cache.place(self._wanted(sequence), num_blocks, spare)
        if placed is None:
            return False
        sequence.block_table = placed.table
        sequence.num_computed = sequence.num_cached = placed.num_cached
        sequence.num_promoted, sequence.num_findable = placed.num_promoted, placed.num_shared
        self._placed.append(sequence)
        return True

    def _reserve(self, num_blocks: int, spare: int, prompt: list[int] | None) -> list[int] | None:
        if self._cache is not None and prompt is not None:
            wanted = Wanted(prompt, block_keys(prompt, self.config.block_size, []))
            placed = self._cache.place_landing(wanted, num_blocks, spare)
            return None if placed is None else placed.table
        return None if num_blocks + spare > self.num_free_blocks else self._blocks.allocate(num_blocks)

    def _num_uncached(self, sequence: Sequence) -> int:
        """Tokens that a waiting sequence would have to compute."""
        if self._cache is None:
            return sequence.num_to_compute
        return sequence.num_to_compute - self._cache.cached_tokens(self._wanted(sequence))

    def _wanted(self, sequence: Sequence) -> Wanted:
        tokens = [*sequence.prompt, *sequence.outputs]
        return Wanted(tokens, block_keys(tokens, self.config.block_size, sequence.keys), sequence.priority)

    def _publish(self, sequence: Sequence) -> None:
        """Make its blocks findable as they fill up. Where another sequence was first with a block, it stops there."""
        if self._cache is None or sequence.num_computed // self.config.block_size == sequence.num_findable:
            return
        wanted = self._wanted(sequence)
        for index in range(sequence.num_findable, sequence.num_computed // self.config.block_size):
            if not self._cache.publish(sequence.block_table[index], wanted, index):
                break
            sequence.num_findable = index + 1

    def _register(self, sequence: Sequence) -> None:
        assert sequence.request_id not in self._known, f"request {sequence.request_id} is here already"
        self.check_fits(sequence.request_id, len(sequence.prompt), sequence.max_output_tokens)
        self._known[sequence.request_id] = sequence
        self.num_changes += 1

    @property
    def _capacity(self) -> int:
        return self._blocks.num_blocks - len(self._quarantined)

    def _seat_free(self) -> bool:
        return len(self._running) + self._num_reserved < self.config.max_num_seqs

    def _headroom(self) -> int:
        """Blocks to leave free: one for each sequence that will still grow, so that admitting is not soon regretted."""
        return sum(sequence.max_output_tokens > 1 for sequence in self._running) + self._num_reserved

    def _grow(self, sequence: Sequence, num_ahead: int = 0) -> bool:
        """Make sure that the newest token, or the ``num_ahead``-th behind it, has a slot; False if no block is free."""
        missing = self._blocks.blocks_for(sequence.num_tokens + num_ahead) - len(sequence.block_table)
        if missing <= 0:
            return True
        if missing > self.num_free_blocks:
            return False
        sequence.block_table.extend(self._blocks.allocate(missing))
        return True

    def _shrink(self, sequence: Sequence) -> None:
        """Free the last block."""
        self._blocks.free([sequence.block_table.pop()])

    def _preempt_youngest(self) -> Sequence:
        """Take the youngest running sequence's blocks; it computes all its known tokens again, before anyone new."""
        victim = self._running.pop()
        self._free(victim)
        victim.num_computed = victim.num_findable = 0
        self._waiting.appendleft(victim)
        return victim

    def _free(self, sequence: Sequence) -> None:
        self._blocks.free(sequence.block_table)
        sequence.block_table = []  # a new list: a message or a transfer may still refer to the old one


def _prefix_cache(config: SchedulerConfig, fetch: Fetch | None) -> PrefixCache:
    size, policy = config.block_size, config.eviction
    moves: list[BlockMove] = []
    host = None
    if config.num_host_blocks:
        host = PrefixCache(config.num_host_blocks, size, policy, name="host", moves=moves)
    return PrefixCache(config.num_kv_blocks, size, policy, host, fetch, moves=moves)
