"""The calendar of events against a list that is sorted anew for every event."""

from __future__ import annotations

import random

from xpyd.simulate.agenda import MESSAGE, STEP_END, Agenda, Event


class Noted(Event):
    def __init__(self, number: int, happened: list[tuple[int, int]]) -> None:
        super().__init__()
        self.number = number
        self._happened = happened

    def happen(self, now_ps: int) -> None:
        self._happened.append((now_ps, self.number))


def test_events_happen_in_order_wherever_they_are_planned_moved_and_cancelled() -> None:
    rng = random.Random(7)
    agenda, happened, expected = Agenda(), [], []  # type: tuple[Agenda, list[tuple[int, int]], list[tuple[int, int]]]
    planned: dict[int, tuple[int, int, int]] = {}  # number -> moment, priority, turn
    events = [Noted(number, happened) for number in range(400)]
    now_ps = 0
    for turn in range(6000):
        span = (50, 10**6, 10**12)[turn // 2000]  # days of one length do not fit all three
        event = rng.choice(events)
        what = rng.random()
        if what < 0.5:
            priority = rng.choice((MESSAGE, STEP_END))
            time_ps = now_ps + rng.randrange(span)
            if planned:  # a look ahead: what is planned then may be of an earlier day
                assert agenda.next_ps() == min(planned.values())[0]
            agenda.plan(time_ps, event, priority)
            planned[event.number] = time_ps, priority, turn
        elif what < 0.6:
            agenda.cancel(event)
            planned.pop(event.number, None)
        elif planned:
            first = min(planned, key=lambda number: planned[number])
            expected.append((planned.pop(first)[0], first))
            assert agenda.next_ps() == expected[-1][0]
            now_ps = agenda.happen()
        assert len(agenda) == len(planned)
    while len(agenda):
        agenda.happen()
    expected += [(planned[number][0], number) for number in sorted(planned, key=lambda number: planned[number])]
    assert happened == expected
    assert len({moment for moment, _ in happened}) < len(happened)  # some were of the same moment
