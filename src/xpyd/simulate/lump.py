"""The decode batch of one instance as one thing: many steps at once, where nothing but the batch's own growth changes.

Between two events every decoding sequence gains one token a step, so a stretch of steps is arithmetic: the context
grows by the batch, a block is taken wherever a sequence crosses a block's border, and the next sequence to end is the
top of a heap. A lump knows these and is exact; ``simulate.fast`` puts it under the real schedulers.
"""

from __future__ import annotations

import heapq

from mypy_extensions import mypyc_attr

from xpyd.scheduler.sequence import Chunk, Sequence
from xpyd.simulate.pool import tally

_ANY = Chunk(Sequence(-1, (), 0), 0, 1)
ORDER_BITS = 32


@mypyc_attr(acyclic=True)
class Member:
    """A decoding sequence: the step after which it joined, and what it had then. ``order``: older is smaller."""

    __slots__ = ("joined_step", "joined_tokens", "key", "order", "phase", "sequence")

    def __init__(
        self, sequence: Sequence, order: int, joined_step: int, joined_tokens: int, key: int, phase: int
    ) -> None:
        self.sequence = sequence
        self.order = order
        self.joined_step = joined_step
        self.joined_tokens = joined_tokens
        self.key = key
        self.phase = phase  # it needs a block in every step that is this number modulo the block size


class Lump:
    """Decoding sequences of one instance. ``step`` counts the decode steps that have ended."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._heap: list[int] = []  # keys
        self.phases = [0] * block_size  # members that need a block in every step of this number modulo the size
        self.members: dict[int, Member] = {}  # by key: the step that completes it, and its order
        self.chunks: list[Chunk] = []  # as many as members: of the decodes of a plan the number is read, and no more
        self.step = 0
        self.context = 0  # tokens of all members in the next step, as StepRow counts them

    def join(self, sequence: Sequence, order: int) -> None:
        """A sequence that decodes from the next step on; its table covers all its tokens but the newest."""
        num_tokens = sequence.num_tokens
        left = sequence.max_output_tokens - len(sequence.outputs)
        phase = (2 + self.step - num_tokens) % self._block_size
        member = Member(sequence, order, self.step, num_tokens, (self.step + left) << ORDER_BITS | order, phase)
        self.chunks.append(_ANY)
        self.members[member.key] = member
        heapq.heappush(self._heap, member.key)
        self.phases[phase] += 1
        self.context += num_tokens

    def growth(self, first: int, last: int) -> int:
        """Blocks that steps ``first`` to ``last`` take, counted from the next one, which is 1."""
        size, phases = self._block_size, self.phases
        if first == last:
            return phases[(self.step + first) % size]
        cycles, rest = divmod(last - first + 1, size)
        begin = (self.step + first) % size
        total = cycles * len(self.members) + sum(phases[begin : begin + rest])
        return total + sum(phases[: max(0, begin + rest - size)])

    def num_steps(self, num_free: int) -> int:
        """Steps that can be run in one go, the blocks of the first taken: to the first end, or while blocks last."""
        wanted = (self._heap[0] >> ORDER_BITS) - self.step
        if len(self.members) * ((wanted - 1) // self._block_size + 1) <= num_free:
            return wanted
        low, high = 1, wanted
        while low < high:
            middle = (low + high + 1) // 2
            if self.growth(2, middle) <= num_free:
                low = middle
            else:
                high = middle - 1
        return low

    def advance(self, num_steps: int) -> None:
        """So many steps have ended; none of them but the last may complete a sequence."""
        self.step += num_steps
        self.context += num_steps * len(self.members)

    def pop_finished(self) -> list[Sequence]:
        """Take out the sequences that the step before completed, oldest first."""
        done: list[Sequence] = []
        while self._heap and self._heap[0] >> ORDER_BITS == self.step:
            done.append(self._leave(self.members[heapq.heappop(self._heap)]))
        return done

    def take_all(self) -> list[Member]:
        """Take out everything, oldest first; each member's sequence is brought up to date."""
        found = sorted(self.members.values(), key=lambda member: member.order)
        for member in found:
            sequence = self._leave(member)
            sequence.outputs, sequence.block_table = [*sequence.outputs], [*sequence.block_table]  # they may grow
        self._heap.clear()
        return found

    def find(self, request_id: int) -> Member | None:
        """The member of this request; a look at all of them."""
        return next((each for each in self.members.values() if each.sequence.request_id == request_id), None)

    def num_tokens(self, member: Member) -> int:
        """Known tokens of a member in the next step."""
        return member.joined_tokens + self.step - member.joined_step

    def _leave(self, member: Member) -> Sequence:
        sequence = member.sequence
        num_tokens = member.joined_tokens + self.step - member.joined_step
        sequence.outputs = tally(len(sequence.outputs) + num_tokens - member.joined_tokens)
        sequence.num_computed = num_tokens - 1
        sequence.block_table = tally(-(-(num_tokens - 1) // self._block_size))
        self.phases[member.phase] -= 1
        self.context -= num_tokens
        del self.members[member.key]
        self.chunks.pop()
        return sequence
