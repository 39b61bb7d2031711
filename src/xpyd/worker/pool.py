"""A rank's end of the remote pool: it keeps blocks for all workers, puts its own evicted ones, and fetches them.

A new request asks the home of its prompt (``Seek``) for what follows on the blocks that are here. The home holds what
it has (``Found``); where fetching is the cheaper, the KV is read straight into the pool (``Bring``), and the request
queues when it has landed, so that the scheduler finds the blocks like any others. Evicted blocks wait in the outbox
until their home takes them (``Put``, ``Take``). Everything moves between layers and steps, on the worker's own thread.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from xpyd.kv.arenas import block_nbytes
from xpyd.kv.entries import BlockMove, Entry, Fetch, Placed
from xpyd.kv.eviction import Use
from xpyd.kv.plan import Plan
from xpyd.kv.prefix import PrefixCache
from xpyd.kv.remote import Outbox, home_of, plan_fetch, plan_put
from xpyd.scheduler.sequence import Sequence
from xpyd.transport.flow import RecvFlow, SendFlow
from xpyd.worker.end import End
from xpyd.worker.engine import Engine
from xpyd.worker.messages import AnyMessage, Bring, Closed, Found, Put, PutEntry, Seek, Take
from xpyd.worker.mover import Mover

POOL_SEQ, NUM_SEQS = 0x4000, 0x2000  # apart from the transfers of hand-offs; puts are even, fetches odd
OUTBOX_BLOCKS = 64


@dataclass(frozen=True)
class Lent:
    """What each worker lends, and where it lies in the registered memory."""

    ranks: tuple[int, ...]  # all that share the pool
    num_blocks: int
    outbox_begin: int
    block_bytes: int  # of all layers

    @property
    def shelf_begin(self) -> int:
        return self.outbox_begin + OUTBOX_BLOCKS * self.block_bytes

    @staticmethod
    def nbytes(num_blocks: int, block_bytes: int) -> int:
        """Bytes to register behind the pool."""
        return (num_blocks + OUTBOX_BLOCKS) * block_bytes if num_blocks else 0


@dataclass(slots=True)
class Fetching:
    """A request that waits for its beginning, and what is to be done when that is here."""

    sequence: Sequence
    home: int
    start: int  # blocks that were here when it was asked for
    queue: Callable[[], None]
    since_ns: int
    placed: Placed | None = None
    flow: RecvFlow | None = None
    cancelled: int | None = None  # the attempt


@dataclass(slots=True)
class Putting:
    """Blocks on their way to their home, or from a worker onto this rank's shelf."""

    slots: list[int]
    entries: list[Entry]
    flow: SendFlow | RecvFlow | None = None


class PoolEnd(End):
    """``fetch``: whether fetching is the cheaper (``kv.tiers``)."""

    expects = True  # any rank may ask at any time

    def __init__(self, engine: Engine, mover: Mover, lent: Lent, fetch: Fetch | None) -> None:
        super().__init__(engine, mover)
        scheduler = engine.scheduler.config
        self.ledger_bytes = 0  # that the plans of puts and fetches promised to this rank
        self.moved_bytes: Counter[str] = Counter()  # over the wire (put, fetched), or between shelf and pool here
        self._lent = lent
        self._fetch = fetch
        self._limit = mover.config.max_piece_bytes
        self._outbox = Outbox(OUTBOX_BLOCKS)
        self._shelf = PrefixCache(lent.num_blocks, scheduler.block_size, scheduler.eviction, name="shelf")
        self._peers = [rank for rank in lent.ranks if rank != self.desk.rank]
        self._tick = 0
        self._seq: Counter[int] = Counter()
        self._fetching: dict[int, Fetching] = {}
        self._puts: dict[tuple[int, int], Putting] = {}  # by home and number
        self._receiving: list[Putting] = []
        self._pinned: dict[tuple[int, int], list[int]] = {}
        self._giving: list[tuple[SendFlow, list[int]]] = []
        self._closed: set[int] = set()  # peers that ask for nothing more
        self._said_closed = False
        engine.scheduler.send_below(self._outbox, fetch)

    def want(self, sequence: Sequence, queue: Callable[[], None]) -> bool:
        """Whether a new request waits for KV of the remote pool; ``queue`` is called when it has come, or does not."""
        scheduler = self.engine.scheduler
        size = scheduler.config.block_size
        num_full, start = (len(sequence.prompt) - 1) // size, scheduler.num_findable(sequence)
        if num_full <= start or not self._pays(start, num_full - start):
            return False
        keys, home = sequence.keys[start:num_full], home_of(sequence.keys[0], self._lent.ranks)
        if home == self.desk.rank:
            self._fetch_here(sequence, start, keys)
            return False
        self._fetching[sequence.request_id] = Fetching(sequence, home, start, queue, time.perf_counter_ns())
        self.desk.mailbox.send(home, Seek(sequence.request_id, keys, sequence.priority))
        return True

    def handle(self, source: int, message: AnyMessage) -> bool:
        match message:
            case Seek():
                slots = self._run(message.keys, message.priority)
                self._pinned[source, message.request_id] = slots
                self.desk.mailbox.send(source, Found(message.request_id, slots))
            case Found():
                self._found(self._fetching[message.request_id], message)
            case Bring():
                self._bring(source, message)
            case Put():
                self._put_here(source, message)
            case Take():
                self._taken(source, message)
            case Closed():
                self._closed.add(source)
            case _:
                return False
        return True

    def move(self) -> bool:
        busy = self._transport.progress()
        waiting = self._outbox.take()
        if waiting:
            self.engine.settle()  # their bytes are in the outbox from here on
            self._put(waiting)
        for fetching in [f for f in self._fetching.values() if f.flow is not None]:
            busy |= self._advance(fetching)
        for key, putting in list(self._puts.items()):
            if putting.flow is not None:
                busy |= putting.flow.advance()
                if putting.flow.done:
                    self._outbox.give_back(putting.slots)
                    del self._puts[key]
        for putting in list(self._receiving):
            assert putting.flow is not None
            busy |= putting.flow.advance()
            if putting.flow.done:
                self._shelve(putting)
                self._receiving.remove(putting)
        for given in list(self._giving):
            flow, slots = given
            busy |= flow.advance()
            if flow.done:
                self._shelf.free(slots)
                self._giving.remove(given)
        return busy

    def between_layers(self) -> None:
        self.move()

    def close(self) -> None:
        """The block ends, and nothing runs here any more: tell the others once nothing of this rank is on its way."""
        if not self._said_closed and not self._fetching and not self._puts:
            self._said_closed = True
            self.desk.mailbox.send_all(self._peers, Closed())

    @property
    def quiet(self) -> bool:
        """Every rank has said that it asks for nothing more, and what was asked for has moved."""
        busy = self._fetching or self._puts or self._receiving or self._giving
        return not busy and self._said_closed and self._closed == set(self._peers)

    def cancel(self, request_id: int, attempt: int) -> bool:
        if request_id not in self._fetching:
            return False
        self._fetching[request_id].cancelled = attempt
        return True

    def stages(self) -> dict[int, str]:
        return {i: f"fetches KV of its beginning from rank {f.home}" for i, f in self._fetching.items()}

    def unfinished(self) -> str:
        return (
            f"{len(self._fetching)} fetches and {len(self._puts)} puts under way, ranks "
            f"{sorted(set(self._peers) - self._closed)} of the remote pool not closed"
        )

    def _pays(self, start: int, num_blocks: int) -> bool:
        return self._fetch is None or self._fetch(start * self.engine.scheduler.config.block_size, num_blocks)

    def _run(self, keys: Many[bytes], priority: int) -> list[int]:
        """The shelf's slots of the first keys, as far as it has them one after the other; held."""
        slots: list[int] = []
        self._tick += 1
        for key in keys:
            slot = self._shelf.find(key)
            if slot is None:
                break
            self._shelf.hold(slot, priority, self._tick)
            slots.append(slot)
        return slots

    def _fetch_here(self, sequence: Sequence, start: int, keys: Many[bytes]) -> None:
        """This rank is the home: no wire, a copy."""
        slots = self._run(keys, sequence.priority)
        placed = self.engine.scheduler.place_fetched(sequence, start + len(slots)) if slots else None
        if placed is not None:
            if placed.num_shared >= start:
                blocks = placed.table[placed.num_shared :]
                self.engine.settle()
                moves = zip(slots[placed.num_shared - start :], blocks, strict=True)
                self.engine.arenas.move(BlockMove("shelf", slot, "pool", block) for slot, block in moves)
                self.moved_bytes["here"] += len(blocks) * self._lent.block_bytes
                sequence.num_remote = len(blocks)
            self.engine.scheduler.keep_fetched(sequence, placed, placed.num_shared >= start)
        self._shelf.free(slots)

    def _found(self, fetching: Fetching, found: Found) -> None:
        """Fetch what the home has, or compute it after all."""
        sequence, scheduler = fetching.sequence, self.engine.scheduler
        num_blocks = len(found.slots)
        wanted = num_blocks and fetching.cancelled is None and self._pays(fetching.start, num_blocks)
        placed = scheduler.place_fetched(sequence, fetching.start + num_blocks) if wanted else None
        if placed is not None and not fetching.start <= placed.num_shared < len(placed.table):
            scheduler.keep_fetched(sequence, placed, False)  # evicted meanwhile, or all here by now
            placed = None
        if placed is None:
            self.desk.mailbox.send(fetching.home, Bring(sequence.request_id, 0, [], 0))
            self._end(fetching)
            return
        self.engine.settle()
        first, table = placed.num_shared - fetching.start, placed.table[placed.num_shared :]
        seq = self._next_seq(fetching.home, fetch=True)
        plan = self._plan_fetch(found.slots[first:], table)
        fetching.placed = placed
        fetching.flow = RecvFlow(self._transport, fetching.home, plan.destination, seq, plan.part_ends)
        fetching.since_ns = time.perf_counter_ns()
        self.ledger_bytes += plan.nbytes
        self.moved_bytes["fetched"] += plan.nbytes
        sequence.num_remote = len(table)
        self.desk.mailbox.send(fetching.home, Bring(sequence.request_id, first, table, seq))

    def _advance(self, fetching: Fetching) -> bool:
        assert fetching.flow is not None
        assert fetching.placed is not None
        moved = fetching.flow.advance()
        if fetching.flow.done:
            self.engine.scheduler.keep_fetched(fetching.sequence, fetching.placed, True)
            self._end(fetching)
            return True
        self.mover.check_time(fetching.since_ns, f"fetching KV from rank {fetching.home}")
        return moved

    def _end(self, fetching: Fetching) -> None:
        """The request goes on without the remote pool: to its queue, or away."""
        request_id = fetching.sequence.request_id
        stage = self.stages()[request_id]
        del self._fetching[request_id]
        if fetching.cancelled is None:
            fetching.queue()
        else:
            self.desk.confirm(request_id, fetching.cancelled, stage)

    def _bring(self, source: int, bring: Bring) -> None:
        slots = self._pinned.pop((source, bring.request_id))
        if not bring.table:
            self._shelf.free(slots)
            return
        plan = self._plan_fetch(slots[bring.first :], bring.table)
        self._giving.append((self._send(source, plan, bring.transfer_seq), slots))

    def _put(self, waiting: list[tuple[int, Entry]]) -> None:
        """Offer evicted blocks to their homes; this rank's own chains are copied."""
        homes: defaultdict[int, Putting] = defaultdict(lambda: Putting([], []))
        for slot, entry in waiting:
            to = homes[home_of(entry.root, self._lent.ranks)]
            to.slots.append(slot)
            to.entries.append(entry)
        for home, putting in homes.items():
            if home == self.desk.rank:
                slots = self._room(putting.entries)
                moves = [
                    BlockMove("outbox", a, "shelf", b) for a, b in zip(putting.slots, slots, strict=True) if b >= 0
                ]
                self.engine.arenas.move(moves)
                self.moved_bytes["here"] += len(moves) * self._lent.block_bytes
                self._shelve(Putting(slots, putting.entries))
                self._outbox.give_back(putting.slots)
                continue
            number = self._next_seq(home, fetch=False)
            self._puts[home, number] = putting
            entries = [PutEntry(e.key, e.parent, e.root, e.depth, e.use.priority) for e in putting.entries]
            self.desk.mailbox.send(home, Put(number, entries, putting.slots))

    def _put_here(self, source: int, put: Put) -> None:
        """Take what the shelf does not have; receives are posted before the answer leaves."""
        entries = [
            Entry(e.key, e.parent, [], e.depth, Use(self._tick, self._tick, self._tick, priority=e.priority), e.root)
            for e in put.entries
        ]
        slots = self._room(entries)
        taken = [i for i, slot in enumerate(slots) if slot >= 0]
        if taken:
            plan = self._plan_put([put.slots[i] for i in taken], [slots[i] for i in taken])
            flow = RecvFlow(self._transport, source, plan.destination, put.number, plan.part_ends)
            self._receiving.append(Putting([slots[i] for i in taken], [entries[i] for i in taken], flow))
            self.ledger_bytes += plan.nbytes
            self.moved_bytes["put"] += plan.nbytes
        self.desk.mailbox.send(source, Take(put.number, slots))

    def _taken(self, home: int, take: Take) -> None:
        putting = self._puts[home, take.number]
        taken = [i for i, slot in enumerate(take.slots) if slot >= 0]
        if not taken:
            self._outbox.give_back(putting.slots)
            del self._puts[home, take.number]
            return
        plan = self._plan_put([putting.slots[i] for i in taken], [take.slots[i] for i in taken])
        putting.flow = self._send(home, plan, take.number)

    def _room(self, entries: Many[Entry]) -> list[int]:
        """A shelf slot for each block, -1 for one that is there or finds no room; to be filled, then shelved."""
        self._tick += 1
        slots = []
        for entry in entries:
            known = self._shelf.find(entry.key) is not None
            slots.append(-1 if known or not self._shelf.num_free else self._shelf.allocate(1)[0])
        return slots

    def _shelve(self, putting: Putting) -> None:
        """The bytes are in their slots: from now on they are found."""
        for slot, entry in zip(putting.slots, putting.entries, strict=True):
            if slot >= 0:
                self._shelf.enter(slot, entry)

    def _send(self, peer: int, plan: Plan, seq: int) -> SendFlow:
        flow = SendFlow(self._transport, peer, plan.source, seq, self._config.pieces_in_flight, plan.part_ends)
        flow.release(len(plan.source))
        flow.advance()
        return flow

    def _plan_fetch(self, slots: Many[int], table: Many[int]) -> Plan:
        return plan_fetch(self._cache.layout, (self._lent.shelf_begin, slots), table, self._limit)

    def _plan_put(self, outbox: Many[int], shelf: Many[int]) -> Plan:
        begins = self._lent.outbox_begin, self._lent.shelf_begin
        return plan_put(block_nbytes(self._cache.layout), (begins[0], outbox), (begins[1], shelf), self._limit)

    def _next_seq(self, peer: int, fetch: bool) -> int:
        self._seq[peer] += 1
        return POOL_SEQ + 2 * (self._seq[peer] % NUM_SEQS) + fetch
