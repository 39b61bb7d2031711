"""Outstanding tokens of the instances of a pool, and the routers' choice among them without a look at each.

The client of a real run counts every token that comes off the load of a rank. Here a stretch of decode steps is one
thing, so loads are brought up to the moment of a pick: the steps that have ended since the last one, in the order of
their ends. How many that are does not depend on the number of instances, and neither does what a pick takes.
"""

from __future__ import annotations

from collections.abc import Sequence

from xpyd.router import RouterConfig
from xpyd.simulate.agenda import Agenda, Event
from xpyd.simulate.costs import Stretch
from xpyd.simulate.lowest import Lowest


class Load(Event):
    """One instance's. What happens to it is that a step of the stretch that runs there has ended."""

    __slots__ = ("batch", "index", "loads", "settled", "stretch", "up")

    def __init__(self, loads: Loads, index: int) -> None:
        super().__init__()
        self.loads = loads
        self.index = index
        self.settled = 0  # outstanding tokens when the running stretch began
        self.batch = 0  # tokens of a step
        self.stretch: Stretch | None = None
        self.up = True

    def happen(self, now_ps: int) -> None:
        self.loads.step_ended(self)


class Loads:
    """Loads of ``num`` instances, and the pick of one of them as ``xpyd.router`` picks."""

    def __init__(self, num: int, config: RouterConfig) -> None:
        self._least = config.policy == "least_outstanding"  # no other simulated router reads loads
        self._router = config.build()
        self._next = 0
        self._num_down = 0
        self._loads = [Load(self, index) for index in range(num)]
        self._lowest = Lowest(num)  # outstanding at the last pick; instances that are down are left out
        self._ends = Agenda()  # when the next step of a stretch ends
        self._now_ps = 0  # of the last pick

    def add(self, index: int, num_tokens: int) -> None:
        """A request was sent there; less than 0: tokens have come, or will not come."""
        if self._least:
            load = self._loads[index]
            load.settled += num_tokens
            if load.up:
                self._lowest.set(index, self._lowest.get(index) + num_tokens)

    def run(self, index: int, stretch: Stretch, batch: int) -> None:
        """A stretch begins: each of its steps takes ``batch`` tokens off the load. It may become shorter later."""
        if self._least and stretch.num_steps > 1:
            load = self._loads[index]
            if load.stretch is not stretch:
                load.stretch, load.batch = stretch, batch
                self._ends.plan(stretch.begin_ps + stretch.first_ps, load)

    def ended(self, index: int, num_tokens: int) -> None:
        """The stretch is over: what it produced is off the load."""
        if self._least:
            load = self._loads[index]
            load.stretch = None
            load.settled -= num_tokens
            if load.up:
                self._lowest.set(index, load.settled)

    def down(self, index: int) -> None:
        """No more requests for this one."""
        self._loads[index].up = False
        self._num_down += 1
        self._lowest.leave_out(index)

    def forget(self, index: int) -> None:
        """What it had is no load any more."""
        self._loads[index].settled = 0

    def back(self, index: int) -> None:
        self._loads[index].up = True
        self._num_down -= 1
        self._lowest.set(index, self._loads[index].settled)

    def at(self, now_ps: int) -> list[int]:
        """Outstanding tokens of each instance that is up; tokens of a step that ends right now are still out."""
        self._catch_up(now_ps)
        return [self._lowest.get(load.index) for load in self._loads if load.up]

    def pick(self, now_ps: int) -> int | None:
        """The instance for a request that comes now; None where all are down."""
        num = len(self._loads)
        if self._num_down == num:
            return None
        if not self._least:
            pool: Sequence[int] = range(num)
            if self._num_down:
                pool = [load.index for load in self._loads if load.up]
            return pool[self._router.route(pool)]
        self._catch_up(now_ps)
        index = self._lowest.first_from(self._next % num)
        self._next = index + 1
        return index

    def step_ended(self, load: Load) -> None:
        """Take off what the steps that ended before the pick brought: one look for all that have."""
        stretch = load.stretch
        if stretch is None:  # over since
            return
        num_ended = stretch.ended_before(self._now_ps)
        if load.up:
            self._lowest.set(load.index, load.settled - num_ended * load.batch)
        if num_ended < stretch.num_steps:
            self._ends.plan(stretch.begin_ps + stretch.after(num_ended + 1), load)

    def _catch_up(self, now_ps: int) -> None:
        self._now_ps = now_ps
        ends = self._ends
        while len(ends) and ends.next_ps() < now_ps:
            ends.happen()
