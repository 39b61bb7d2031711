"""What will happen, in the order in which it happens: of the same moment by priority, and then as it was planned."""

from __future__ import annotations

import heapq

MESSAGE, STEP_END = 0, 1
SLOT_BITS, NUMBER_BITS = 24, 32
SLOTS = (1 << SLOT_BITS) - 1
TIME_SHIFT = SLOT_BITS + NUMBER_BITS


class Event:
    """Something that happens at a moment that is known. One that is void by then does nothing."""

    __slots__ = ()

    def happen(self, now_ps: int) -> None:
        raise NotImplementedError


class Agenda:
    """A heap of plain ints, moment, priority, number and slot in one, as nothing is compared as fast as these."""

    def __init__(self) -> None:
        self._keys: list[int] = []
        self._events: list[Event] = []  # by slot
        self._free: list[int] = []  # slots
        self._num_planned = 0

    def __len__(self) -> int:
        return len(self._keys)

    def plan(self, time_ps: int, event: Event, priority: int = MESSAGE) -> None:
        self._num_planned += 1
        if self._free:
            slot = self._free.pop()
            self._events[slot] = event
        else:
            slot = len(self._events)
            assert slot <= SLOTS, "more events are planned than a heap of this kind can tell apart"
            self._events.append(event)
        low = (self._num_planned << SLOT_BITS) | slot
        heapq.heappush(self._keys, ((time_ps * 2 + priority) << TIME_SHIFT) | low)

    def next_ps(self) -> int:
        """When the next event happens; there is one."""
        return self._keys[0] >> (TIME_SHIFT + 1)

    def happen(self) -> int:
        """Let the next event happen; returns when that is."""
        key = heapq.heappop(self._keys)
        slot = key & SLOTS
        event = self._events[slot]
        self._events[slot] = NOTHING
        self._free.append(slot)
        now_ps = key >> (TIME_SHIFT + 1)
        event.happen(now_ps)
        return now_ps


NOTHING = Event()
