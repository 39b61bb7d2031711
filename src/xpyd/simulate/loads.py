"""Outstanding tokens of the instances of a pool, and the routers' choice among them without a look at each.

The client of a real run counts every token that comes off the load of a rank. Here a stretch of decode steps is one
thing, so a load is a formula of time; all of a pool are worked out at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from xpyd.router import RouterConfig
from xpyd.simulate.costs import Stretch

DOWN = np.iinfo(np.int64).max


class Loads:
    """Loads of ``num`` instances, and the pick of one of them as ``xpyd.router`` picks."""

    def __init__(self, num: int, config: RouterConfig) -> None:
        self._least = config.policy == "least_outstanding"
        self._router = config.build()
        self._next = 0
        self.settled = np.zeros(num, np.int64)  # outstanding when the running stretch began
        self._begin = np.zeros(num, np.int64)
        self._first = np.ones(num, np.int64)
        self._slope = np.zeros(num, np.int64)
        self._steps = np.zeros(num, np.int64)
        self._batch = np.zeros(num, np.int64)
        self._decodes = False  # a stretch with decodes has run: else loads are what is settled
        self.up = np.ones(num, np.bool_)

    def run(self, index: int, stretch: Stretch, batch: int) -> None:
        """A stretch begins: each of its steps takes ``batch`` tokens off the load."""
        self._decodes = True
        self._begin[index], self._first[index] = stretch.begin_ps, stretch.first_ps
        self._slope[index], self._steps[index], self._batch[index] = stretch.slope_ps, stretch.num_steps, batch

    def ended(self, index: int, num_tokens: int) -> None:
        """The stretch is over: what it produced is off the load."""
        self._batch[index] = 0
        self.settled[index] -= num_tokens

    def at(self, now_ps: int) -> NDArray[np.int64]:
        """Outstanding tokens of each instance, shape [num]; tokens of a step that ends right now are still out."""
        if not self._decodes:
            return self.settled
        span, first, slope = np.maximum(now_ps - self._begin - 1, 0), self._first, self._slope
        b = 2 * first - slope
        curve = (np.sqrt(np.square(b, dtype=np.float64) + 8.0 * slope * span) - b) / np.maximum(2.0 * slope, 1.0)
        steps = np.where(slope > 0, curve, span / first).astype(np.int64)
        steps = np.minimum(steps, self._steps + 1)
        steps += (steps + 1) * first + slope * ((steps + 1) * steps // 2) <= span  # the root was rounded
        steps -= steps * first + slope * (steps * (steps - 1) // 2) > span
        decoded = np.minimum(steps, self._steps) * self._batch
        return np.asarray(self.settled - decoded, np.int64)

    def pick(self, now_ps: int) -> int | None:
        """The instance for a request that comes now; None where all are down."""
        up = self.up if not self.up.all() else None
        if up is not None and not up.any():
            return None
        if not self._least:
            pool: Sequence[int] = range(len(self.up)) if up is None else np.flatnonzero(up).tolist()
            return pool[self._router.route(pool)]
        loads = self.at(now_ps) if up is None else np.where(up, self.at(now_ps), DOWN)
        equals = np.flatnonzero(loads == loads.min())
        place = int(np.searchsorted(equals, self._next % len(loads)))
        index = int(equals[place % len(equals)])
        self._next = index + 1
        return index
