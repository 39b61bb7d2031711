"""How long the client sleeps between two looks at its messages. Pure.

A client that shares a core with a worker takes it away at every look, for some 15 us: with looks every 50 us decode
steps of 2.0 ms took 2.4 ms beside an idle worker and 3.4 ms beside one that computed a prompt. So it looks a few times
in what a decode step takes, and no more.
"""

from __future__ import annotations

from math import inf

LOOKS_PER_STEP = 8
LEAST_S, MOST_S = 50e-6, 500e-6
GROWTH = 1.05  # the shortest step is forgotten as messages come: 2 % of it are left after 80
GOLDEN = 0.618033988749895  # its multiples, modulo one, lie evenly


class Pace:
    """Follows the steps that tokens tell of.

    Sleeps are between half and one and a half of the usual one, in turn: with equal ones a token would be seen a whole
    number of looks after the one before, and the median gap of a request would be that number, not what it is.
    """

    def __init__(self) -> None:
        self._told_ns: dict[int, int] = {}  # by rank, when it sent its last tokens
        self._step_s = inf
        self._turn = 0.5

    def heard(self, source: int, emitted_ns: int) -> None:
        """Tokens of a step that ended at ``emitted_ns``, by the clock of ``source`` or any other that it keeps to."""
        gap_s = (emitted_ns - self._told_ns.get(source, 0)) / 1e9 if source in self._told_ns else inf
        self._told_ns[source] = emitted_ns
        if gap_s > 0:
            self._step_s = min(gap_s, self._step_s * GROWTH)

    def sleep_s(self, due_s: float = inf) -> float:
        """Until the next look; no longer than until the next request is due, ``due_s`` from now."""
        self._turn = (self._turn + GOLDEN) % 1.0
        usual_s = LEAST_S if self._step_s == inf else min(max(self._step_s / LOOKS_PER_STEP, LEAST_S), MOST_S)
        return max(0.0, min(usual_s * (0.5 + self._turn), due_s))
