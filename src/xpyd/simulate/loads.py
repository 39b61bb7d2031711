"""Outstanding tokens of the instances of a pool, and the routers' choice among them without a look at each.

The client of a real run counts every token that comes off the load of a rank. Here a stretch of decode steps is one
thing, so loads are brought up to the moment of a pick: the steps that have ended since the last one, in the order of
their ends. How many that are does not depend on the number of instances, and neither does what a pick takes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from xpyd.router import RouterConfig
from xpyd.simulate.costs import Stretch
from xpyd.simulate.lowest import Lowest


class Loads:
    """Loads of ``num`` instances, and the pick of one of them as ``xpyd.router`` picks."""

    def __init__(self, num: int, config: RouterConfig) -> None:
        self._least = config.policy == "least_outstanding"  # no other simulated router reads loads
        self._router = config.build()
        self._next = 0
        self._up = [True] * num
        self._num_down = 0
        self._settled = [0] * num  # outstanding when the running stretch began
        self._lowest = Lowest(num)  # outstanding at the last pick; instances that are down are left out
        self._running: list[tuple[Stretch, int] | None] = [None] * num  # with the tokens of a step
        self._num_runs = 0
        self._ends: list[tuple[int, int, int, Stretch]] = []  # when the next step of a stretch ends, run, index; a heap

    def add(self, index: int, num_tokens: int) -> None:
        """A request was sent there; less than 0: tokens have come, or will not come."""
        if self._least:
            self._settled[index] += num_tokens
            if self._up[index]:
                self._lowest.set(index, self._lowest.get(index) + num_tokens)

    def run(self, index: int, stretch: Stretch, batch: int) -> None:
        """A stretch begins: each of its steps takes ``batch`` tokens off the load. It may become shorter later."""
        if self._least and stretch.num_steps > 1:
            self._running[index] = stretch, batch
            self._num_runs += 1
            heapq.heappush(self._ends, (stretch.begin_ps + stretch.first_ps, self._num_runs, index, stretch))

    def ended(self, index: int, num_tokens: int) -> None:
        """The stretch is over: what it produced is off the load."""
        if self._least:
            self._running[index] = None
            self._settled[index] -= num_tokens
            if self._up[index]:
                self._lowest.set(index, self._settled[index])

    def down(self, index: int) -> None:
        """No more requests for this one."""
        self._up[index] = False
        self._num_down += 1
        self._lowest.leave_out(index)

    def forget(self, index: int) -> None:
        """What it had is no load any more."""
        self._settled[index] = 0

    def back(self, index: int) -> None:
        self._up[index] = True
        self._num_down -= 1
        self._lowest.set(index, self._settled[index])

    def at(self, now_ps: int) -> list[int]:
        """Outstanding tokens of each instance that is up; tokens of a step that ends right now are still out."""
        self._catch_up(now_ps)
        return [self._lowest.get(index) for index, up in enumerate(self._up) if up]

    def pick(self, now_ps: int) -> int | None:
        """The instance for a request that comes now; None where all are down."""
        num = len(self._up)
        if self._num_down == num:
            return None
        if not self._least:
            pool: Sequence[int] = range(num)
            if self._num_down:
                pool = [index for index, up in enumerate(self._up) if up]
            return pool[self._router.route(pool)]
        self._catch_up(now_ps)
        index = self._lowest.first_from(self._next % num)
        self._next = index + 1
        return index

    def _catch_up(self, now_ps: int) -> None:
        """Take off what the steps that ended before ``now_ps`` brought, one look for each stretch that has any."""
        ends = self._ends
        while ends and ends[0][0] < now_ps:
            _, run, index, stretch = ends[0]
            running = self._running[index]
            if running is None or running[0] is not stretch:
                heapq.heappop(ends)
                continue
            num_ended = stretch.ended_before(now_ps)
            if self._up[index]:
                self._lowest.set(index, self._settled[index] - num_ended * running[1])
            if num_ended < stretch.num_steps:
                next_ps = stretch.begin_ps + stretch.after(num_ended + 1)
                heapq.heapreplace(ends, (next_ps, run, index, stretch))
            else:
                heapq.heappop(ends)
