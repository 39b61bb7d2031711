"""Prefix caching: full KV blocks are found again by a hash of their tokens and of all tokens before them.

A block that sequences share is referenced by each and written by none: who must write into one (the last token of a
prompt is always computed again, or tokens part ways inside a block) gets a copy first. A cached block that nobody
holds counts as free, yet stays findable until its memory is wanted; ``kv.eviction`` says which goes first, leaves
before their parents, so that whatever is cached can be reached. Pure: ids and hashes, the bytes are moved elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from itertools import count

from xpyd.kv.blocks import BlockAllocator
from xpyd.kv.entries import ROOT, Below, BlockMove, Entry, Fetch, Placed, Tier, Wanted
from xpyd.kv.eviction import POLICIES, EvictionPolicy, Score, Use


@dataclass(slots=True)
class _Match:
    shared: list[int]
    host: list[int] = field(default_factory=list)  # slots of the tier below, behind the shared blocks
    partial: int | None = None  # a block of which the first tokens match too
    num_partial: int = 0


class PrefixCache(BlockAllocator):
    """A block allocator that remembers. ``host``: the bookkeeping of the tier that evicted blocks come back from.

    ``below`` takes what is evicted where there is no host tier. The tiers of an instance share ``moves``.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        policy: EvictionPolicy = "lru",
        host: PrefixCache | None = None,
        fetch: Fetch | None = None,
        name: Tier = "pool",
        moves: list[BlockMove] | None = None,
    ) -> None:
        super().__init__(num_blocks, block_size)
        self.name: Tier = name
        self.below: Below | None = host
        self.num_evicted = 0
        self._score = POLICIES[policy]
        self._host = host
        self._fetch = fetch
        self._tick = 0
        self._entries: dict[int, Entry] = {}
        self._blocks: dict[bytes, int] = {}
        self._children: defaultdict[bytes, list[int]] = defaultdict(list)
        self._idle: dict[int, Entry] = {}  # findable, and held by nobody
        self._leaves: list[tuple[Score, int, int]] = []  # a heap of idle leaves; some are stale
        self._serials = count()  # no two leaves compare equal
        self._moves = [] if moves is None else moves

    @property
    def num_free(self) -> int:
        """Blocks that can be had: empty ones, and cached ones that nobody holds."""
        return len(self._free) + len(self._idle)

    def find(self, key: bytes) -> int | None:
        """The block of this key."""
        return self._blocks.get(key)

    def take_moves(self) -> list[BlockMove]:
        """What has to be moved before anything is written into a block that was handed out since the last call."""
        moves = list(self._moves)
        self._moves.clear()
        return moves

    def cached_tokens(self, wanted: Wanted) -> int:
        """Tokens that ``place`` would find, but for those that it leaves for want of room."""
        match = self._match(wanted, len(wanted.tokens) - 1)
        return (len(match.shared) + len(match.host)) * self.block_size + match.num_partial

    def place(self, wanted: Wanted, num_blocks: int, spare: int) -> Placed | None:
        """A table for tokens to be computed, all but the last one possibly cached; None: not enough room.

        ``spare`` blocks stay free beside it.
        """
        return self._place(self._match(wanted, len(wanted.tokens) - 1), wanted, num_blocks, spare)

    def findable(self, wanted: Wanted) -> int:
        """Full blocks of these tokens, but for one that holds the last, that the pool and the host tier have."""
        match = self._match(wanted, len(wanted.tokens) - 1)
        return len(match.shared) + len(match.host)

    def place_landing(self, wanted: Wanted, num_blocks: int, spare: int, last_lands: bool = True) -> Placed | None:
        """A table for KV that arrives, ``last_lands``: at least its last block. What is here need not come."""
        limit = (num_blocks - last_lands) * self.block_size
        match = self._match(wanted, limit)
        match.partial, match.num_partial = None, 0  # it would be written over
        return self._place(match, wanted, num_blocks, spare)

    def publish(self, block: int, wanted: Wanted, index: int) -> bool:
        """Make the ``index``-th block of a sequence findable, its KV being computed; True where it is, by this id.

        Its parent must be findable by the sequence's own block, else nothing may hold it while the child is held.
        """
        key = wanted.keys[index]
        if key in self._blocks:
            return self._blocks[key] == block
        assert self._refcounts[block] > 0, f"block {block} is published by nobody who holds it"
        assert block not in self._entries, f"block {block} is published under two keys"
        size = self.block_size
        tokens = wanted.tokens[index * size : (index + 1) * size]
        parent = wanted.keys[index - 1] if index else ROOT
        use = Use(self._tick, self._tick, self._tick, priority=wanted.priority)
        self._add(block, Entry(key, parent, tokens, index, use, wanted.keys[0]))
        return True

    def adopt(self, entry: Entry) -> int | None:
        """A slot for a block that the tier above evicts, findable here from now on; None where it is here already."""
        mine = replace(entry, use=replace(entry.use))
        here = self._blocks.get(entry.key)
        if here is not None:
            self._entries[here].use = mine.use
            if here in self._idle:
                self._offer(here, self._entries[here])
            return None
        (slot,) = self.allocate(1)
        self.enter(slot, mine)
        return slot

    def enter(self, slot: int, entry: Entry) -> None:
        """Make a slot that was allocated findable, held by nobody; free again where its block is here by now."""
        if entry.key in self._blocks:
            self.free([slot])
            return
        self._refcounts[slot] = 0
        self._add(slot, entry)
        self._idle[slot] = entry
        self._offer(slot, entry)

    def evict_to(self, below: Below, fetch: Fetch | None) -> None:
        """Where the lowest tier's evicted blocks go, and which are worth it."""
        if self._host is not None:
            self._host.evict_to(below, fetch)
            return
        self.below, self._fetch = below, fetch

    def allocate(self, num_blocks: int) -> list[int]:
        while len(self._free) < num_blocks <= self.num_free:
            self._evict()
        return super().allocate(num_blocks)

    def _place(self, match: _Match, wanted: Wanted, num_blocks: int, spare: int) -> Placed | None:
        num_new = num_blocks - len(match.shared)
        held = {block for block in (*match.shared, match.partial) if block in self._idle}
        if num_new + len(held) + spare > self.num_free and match.partial in held:
            held.discard(match.partial)  # its own copy would not fit beside it
            match.partial, match.num_partial = None, 0
        if num_new + len(held) + spare > self.num_free:
            return None
        self._tick += 1
        for block in match.shared:
            self._claim(block, wanted.priority)
        source = [] if match.partial is None else [match.partial]
        for block in source:  # held until its copy is ordered: making room must not evict it
            self._claim(block, wanted.priority)
        promoted = [self._host.hold(slot, wanted.priority, self._tick) for slot in match.host] if self._host else []
        new = self.allocate(num_new)
        self._moves += [BlockMove("host", slot, "pool", block) for slot, block in zip(match.host, new, strict=False)]
        self._moves += [BlockMove("pool", block, "pool", new[len(promoted)]) for block in source]
        self.free(source)
        for entry, block in zip(promoted, new, strict=False):
            self._add(block, replace(entry, use=replace(entry.use)))
        if self._host:
            self._host.free(match.host)
        num_shared = len(match.shared) + len(promoted)
        num_cached = num_shared * self.block_size + match.num_partial
        return Placed(match.shared + new, num_cached, num_shared, len(promoted))

    def hold(self, slot: int, priority: int, tick: int) -> Entry:
        """Keep a slot while its bytes are wanted elsewhere, until ``free``; what is in it."""
        self._tick = tick
        self._claim(slot, priority)
        return self._entries[slot]

    def _match(self, wanted: Wanted, limit: int) -> _Match:
        """What is cached of the first ``limit`` tokens: whole blocks, then the front of one more."""
        shared = []
        for key in wanted.keys[: limit // self.block_size]:
            block = self._blocks.get(key)
            if block is None:
                break
            shared.append(block)
        match = _Match(shared, self._match_host(wanted, len(shared), limit))
        if not match.host:
            self._match_partial(match, wanted, limit)
        return match

    def _match_host(self, wanted: Wanted, num_shared: int, limit: int) -> list[int]:
        slots: list[int] = []
        if self._host is None:
            return slots
        for key in wanted.keys[num_shared : limit // self.block_size]:
            slot = self._host.find(key)
            if slot is None or key in self._blocks:
                break
            slots.append(slot)
        if slots and self._fetch is not None and not self._fetch(num_shared * self.block_size, len(slots)):
            return []
        return slots

    def _match_partial(self, match: _Match, wanted: Wanted, limit: int) -> None:
        """The child of the last shared block that has the longest beginning in common."""
        begin = len(match.shared) * self.block_size
        rest = wanted.tokens[begin : min(limit, begin + self.block_size)]
        parent = wanted.keys[len(match.shared) - 1] if match.shared else ROOT
        for block in self._children.get(parent, ()):
            num_common = _num_common(self._entries[block].tokens, rest)
            if num_common > match.num_partial:
                match.partial, match.num_partial = block, num_common

    def _add(self, block: int, entry: Entry) -> None:
        entry.num_children = len(self._children.get(entry.key, ()))  # in a lower tier children come before parents
        self._entries[block] = entry
        self._blocks[entry.key] = block
        self._children[entry.parent].append(block)
        parent = self._blocks.get(entry.parent)
        if parent is not None:
            self._entries[parent].num_children += 1

    def _claim(self, block: int, priority: int) -> None:
        if self._idle.pop(block, None) is None:
            self.share([block])
        else:
            self._refcounts[block] = 1
        self._entries[block].use.claim(self._tick, priority)

    def _retire(self, block: int) -> None:
        entry = self._entries.get(block)
        if entry is None:
            super()._retire(block)
            return
        entry.use.last = self._tick
        self._idle[block] = entry
        self._offer(block, entry)

    def _offer(self, block: int, entry: Entry) -> None:
        """An idle block may be evicted once nothing behind it is cached."""
        if entry.num_children:
            return
        if len(self._leaves) > 2 * self.num_blocks:  # mostly stale
            self._leaves = [self._leaf(b, e) for b, e in self._idle.items() if not e.num_children]
            heapify(self._leaves)
        heappush(self._leaves, self._leaf(block, entry))

    def _leaf(self, block: int, entry: Entry) -> tuple[Score, int, int]:
        return (self._score(entry.use), next(self._serials), block)

    def _evict(self) -> None:
        block, entry = self._next_victim()
        del self._idle[block], self._entries[block], self._blocks[entry.key]
        siblings = self._children[entry.parent]
        siblings.remove(block)
        if not siblings:
            del self._children[entry.parent]
        parent = self._blocks.get(entry.parent)
        if parent is not None:
            above = self._entries[parent]
            above.num_children -= 1
            if parent in self._idle:
                self._offer(parent, above)
        self._free.append(block)
        self.num_evicted += 1
        self._demote(block, entry)

    def _next_victim(self) -> tuple[int, Entry]:
        while True:
            score, _, block = heappop(self._leaves)
            entry = self._idle.get(block)
            if entry is not None and not entry.num_children and score == self._score(entry.use):
                return block, entry  # else it was used since, or has been evicted

    def _demote(self, block: int, entry: Entry) -> None:
        if self.below is None or not self.below.num_free:
            return
        if self._fetch is not None and not self._fetch(entry.depth * self.block_size, 1):
            return
        slot = self.below.adopt(entry)
        if slot is not None:
            self._moves.append(BlockMove(self.name, block, self.below.name, slot))


def _num_common(left: list[int], right: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
