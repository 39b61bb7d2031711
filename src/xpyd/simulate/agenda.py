"""What will happen, in the order in which it happens: of the same moment by priority, and then as it was planned.

A calendar: days of equal length, each with the few events that are planned for it, on pages that are used again when
all have had their turn. Events carry their own links, so to plan one makes no object and looks at one page. A heap of
thousands looks at a dozen places far apart, and with many instances each of them has to come from memory.
"""

from __future__ import annotations

from mypy_extensions import mypyc_attr

MESSAGE, STEP_END = 0, 1
FEWEST_PAGES = 16
FIRST_SHIFT = 34  # of a day, until it is known how closely events follow each other
PERIOD = 4  # by so many events for each page the days are made to fit anew


@mypyc_attr(acyclic=True)
class Event:
    """Something that will happen, once at a time: to plan it anew moves it."""

    __slots__ = ("key", "later")

    def __init__(self) -> None:
        self.key = -1  # moment and priority in one, while it is planned
        self.later: Event | None = None  # the next one on its page

    def happen(self, now_ps: int) -> None:
        raise NotImplementedError


class Agenda:
    """Events by their keys. A day is ``1 << shift`` keys long."""

    def __init__(self) -> None:
        self._pages: list[Event | None] = [None] * FEWEST_PAGES  # the first event of each, in the order of their keys
        self._mask = FEWEST_PAGES - 1
        self._shift = FIRST_SHIFT
        self._num = 0
        self._day = 0  # no event is of an earlier one
        self._num_happened = 0  # since the days were last made to fit,
        self._fitted_key = 0  # which was at this moment

    def __len__(self) -> int:
        return self._num

    def plan(self, time_ps: int, event: Event, priority: int = MESSAGE) -> None:
        """``event`` happens at ``time_ps``, and not when it was planned for before."""
        if event.key >= 0:
            self.cancel(event)
        event.key = time_ps * 2 + priority
        self._insert(event)
        self._num += 1
        if self._num > 2 * len(self._pages):
            self._fit()

    def cancel(self, event: Event) -> None:
        """It does not happen, if it was planned at all."""
        if event.key < 0:
            return
        page = (event.key >> self._shift) & self._mask
        other = self._pages[page]
        if other is event:
            self._pages[page] = event.later
        else:
            while other is not None and other.later is not event:
                other = other.later
            assert other is not None, "a planned event is on no page"
            other.later = event.later
        event.key, event.later = -1, None
        self._num -= 1

    def next_ps(self) -> int:
        """When the next event happens; there is one."""
        return self._first().key >> 1

    def happen(self) -> int:
        """Let the next event happen; returns when that is."""
        event = self._first()
        key = event.key
        self._pages[self._day & self._mask] = event.later
        event.key, event.later = -1, None
        self._num -= 1
        self._num_happened += 1
        if self._num_happened > PERIOD * len(self._pages):
            self._fit_to(key)
        event.happen(key >> 1)
        return key >> 1

    def _first(self) -> Event:
        pages, mask, shift, day = self._pages, self._mask, self._shift, self._day
        for _ in range(len(pages)):
            event = pages[day & mask]
            if event is not None and event.key >> shift == day:
                self._day = day
                return event
            day += 1
        first: Event | None = None  # nothing on any page in its turn: whatever is next
        for event in pages:
            if event is not None and (first is None or event.key < first.key):
                first = event
        assert first is not None, "nothing is planned"
        self._day = first.key >> shift
        return first

    def _insert(self, event: Event) -> None:
        """Put it on its page, behind those of the same key."""
        key = event.key
        day = key >> self._shift
        if day < self._day:
            self._day = day
        page = day & self._mask
        other = self._pages[page]
        if other is None or key < other.key:
            event.later = other
            self._pages[page] = event
            return
        later = other.later
        while later is not None and later.key <= key:
            other, later = later, later.later
        event.later = later
        other.later = event

    def _fit_to(self, key: int) -> None:
        """Days as long as two of the latest events are apart."""
        shift = max(1, ((key - self._fitted_key) // self._num_happened).bit_length() + 1)
        self._num_happened, self._fitted_key = 0, key
        if abs(shift - self._shift) > 1 or self._num * 8 < len(self._pages):
            self._shift = shift
            self._fit()

    def _fit(self) -> None:
        """As many pages as there are events or more, and all of these on them."""
        old = self._pages
        num = max(FEWEST_PAGES, 1 << (self._num - 1).bit_length())
        self._pages, self._mask = [None] * num, num - 1
        self._day = 1 << 62
        for each in old:
            event = each
            while event is not None:
                later = event.later
                event.later = None
                self._insert(event)
                event = later
        if not self._num:
            self._day = 0
