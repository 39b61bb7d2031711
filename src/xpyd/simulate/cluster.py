"""The event loop: arrivals, steps, hand-offs and outages of one block, in the order of simulated time.

What happens at the same moment happens in this order: arrivals, messages and transfers, then the ends of steps. So a
step that begins at t sees everything that came until t, as a worker does that receives before it schedules.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterator

from xpyd.economics.moving import UNKNOWN
from xpyd.request import Request, Stage
from xpyd.scheduler.base import NeverFits, Scheduler
from xpyd.scheduler.sequence import Sequence
from xpyd.simulate.account import Account, Flight
from xpyd.simulate.agenda import STEP_END, Agenda, Event
from xpyd.simulate.beside import Beside
from xpyd.simulate.costs import PS_PER_NS, StepCosts, to_ps
from xpyd.simulate.fast import simulated_scheduler
from xpyd.simulate.handoff import Handoffs
from xpyd.simulate.hybrid import HybridRouting
from xpyd.simulate.instance import Instance
from xpyd.simulate.loads import Loads
from xpyd.simulate.outages import Outages
from xpyd.simulate.scattered import Scattered
from xpyd.simulate.setup import Setup


class Cluster:
    """One block of one arm. ``recorded`` says of which requests rows are wanted."""

    def __init__(self, setup: Setup, account: Account, recorded: Callable[[int], bool]) -> None:
        self.setup = setup
        self.account = account
        account.tell_ps = to_ps(setup.delays.tell_s)
        self._submit_ps = to_ps(setup.delays.submit_s)
        self.flights: dict[int, Flight] = {}
        self._recorded = recorded
        self.agenda = Agenda()
        self._parked: deque[Flight] = deque()  # no instance is up to take them
        self._requests: Iterator[Request] = iter(())
        self._concurrency: int | None = None
        self._num_unheard = 0  # in a closed loop: requests that have ended, which the client has yet to hear of
        self.instances: list[Instance] = []
        self.pools: list[list[Instance]] = []
        rank = 1
        for role, num, width in setup.pools():
            pool = []
            for index in range(num):
                number = len(self.instances)
                costs = StepCosts.of(setup.compute_of(role), setup.slowness(number, width))
                place = index if setup.hybrid is None else number
                pool.append(Instance(self, number, place, role, rank, width, costs))
                pool[-1].begin_block(self._scheduler(pool[-1]), account)
                self.instances.append(pool[-1])
                rank += width
            self.pools.append(pool)
        self.hybrid = HybridRouting(setup.hybrid, setup) if setup.hybrid is not None else None
        sizes = map(len, self.pools) if self.hybrid is None else (len(self.instances),)  # then all are one pool
        self.loads = [Loads(size, setup.router) for size in sizes]
        self.scattered = Scattered(setup.scatters, setup.seed) if setup.scatters else None
        self.beside = Beside(setup.moving, self) if setup.moving != UNKNOWN else None
        self.handoffs = Handoffs(self)
        Outages(self).plan()

    def play(self, requests: Iterator[Request], concurrency: int | None = None) -> int:
        """Play ``requests``, in arrival order, to their end; returns when the client heard of the last one's, in ps."""
        collects = gc.isenabled()
        gc.disable()  # a request that ends leaves no cycles behind, so a collector would look in vain
        try:
            return self._play(requests, concurrency)
        finally:
            if collects:
                gc.enable()

    def _play(self, requests: Iterator[Request], concurrency: int | None) -> int:
        self._requests, self._concurrency = requests, concurrency
        upcoming = None
        if concurrency is None:
            upcoming = next(requests, None)
        else:
            self.refill(0)
        agenda, flights, last_ps = self.agenda, self.flights, 0
        due_ps = upcoming.arrival_offset_ns * PS_PER_NS if upcoming is not None else 0
        while upcoming is not None or flights or self._num_unheard:
            if upcoming is not None and (not agenda or due_ps <= agenda.next_ps()):
                self.arrive(upcoming, due_ps)
                upcoming = next(requests, None)
                if upcoming is not None:
                    due_ps = upcoming.arrival_offset_ns * PS_PER_NS
                continue
            assert agenda, f"requests {list(flights)[:8]} wait for something that never comes"
            last_ps = agenda.happen()
        return last_ps if concurrency is not None else last_ps + self.account.tell_ps

    def route(self, flight: Flight, now_ps: int) -> None:
        """Give a request to the instances that the routers pick; it waits where a whole pool is down."""
        if self.hybrid is not None:
            home = self.loads[0].pick(now_ps)
            assert home is not None, "no outages beside hybrid routing"
            source, last = (self.instances[number] for number in self.hybrid.route(flight, now_ps, home))
        else:
            first = self.loads[0].pick(now_ps)
            second = self.loads[1].pick(now_ps) if len(self.loads) > 1 else first
            if first is None or second is None:
                self._parked.append(flight)
                return
            source, last = self.pools[0][first], self.pools[-1][second]
        flight.prefill, flight.decode = source.number, last.number
        flight.num_seen, flight.begun = 0, False
        self.loads[0].add(source.index, flight.input_len)
        self.loads[-1].add(last.index, flight.output_len)
        if self._submit_ps:
            source.flights[flight.request_id] = flight  # an outage hits it on its way, too
            self.agenda.plan(now_ps + self._submit_ps, _Submit(self, flight))
        else:
            self.submit(flight, now_ps)

    def unpark(self, now_ps: int) -> None:
        """An instance is up again."""
        waiting, self._parked = self._parked, deque()
        for flight in waiting:
            self.route(flight, now_ps)

    def unload(self, flight: Flight) -> None:
        """Take what was still expected of an attempt off the loads."""
        source, last = self.instances[flight.prefill], self.instances[flight.decode]
        if not flight.num_seen:
            self.loads[0].add(source.index, -flight.input_len)
        self.loads[-1].add(last.index, flight.num_seen - flight.output_len)

    def kick(self, instance: Instance, now_ps: int) -> None:
        """Let an idle instance take its next step, if there is one to take."""
        if not instance.start(now_ps):
            return
        for chunk in instance.plan.prefills:
            flight = instance.flights[chunk.sequence.request_id]
            if not flight.begun:
                flight.begun = True
                if flight.recorded:
                    self.account.stamp(flight, Stage.PREFILL_BEGIN, instance.rank, now_ps)
        if instance.hands_off:
            self.handoffs.step_begins(instance, now_ps)
        if self.scattered is not None:
            self.scattered.step_begins(instance, now_ps)
        if self.beside is not None:
            self.beside.step_begins(instance, now_ps)
        self.expect_end(instance)

    def expect_end(self, instance: Instance) -> None:
        """The stretch of an instance is new, or has become shorter."""
        assert instance.stretch is not None
        if instance.batch:
            self.loads[-1].run(instance.index, instance.stretch, instance.batch)
        self.agenda.plan(instance.stretch.end_ps, instance, STEP_END)

    def fail(self, flight: Flight, now_ps: int, reason: str) -> None:
        """The request ends here; it is no longer anywhere."""
        self.account.failed(flight, now_ps, reason)
        self._ended(flight, now_ps)

    def first_token(self, flight: Flight, instance: Instance, now_ps: int) -> None:
        """A token that no decode step brings: the first of an attempt, or of a prompt computed again."""
        if flight.num_seen == 0:
            if self.hybrid is not None:
                self.hybrid.first_token(flight, now_ps)
            self.loads[0].add(self.instances[flight.prefill].index, -flight.input_len)
        self.loads[-1].add(self.instances[flight.decode].index, -1)
        self.account.first(flight, instance.rank, now_ps)

    def boundary(self, instance: Instance, now_ps: int) -> None:
        """Between two steps: admit what has landed, take offers, and go on."""
        if instance.landed:
            self.handoffs.admit_landed(instance, now_ps)
        if instance.offers:
            self.handoffs.take_offers(instance, now_ps)
        self.kick(instance, now_ps)

    def renew(self, instance: Instance) -> None:
        """An instance comes back, empty."""
        instance.begin_block(self._scheduler(instance), self.account)

    def _scheduler(self, instance: Instance) -> Scheduler:
        num_kv_blocks = self.setup.num_kv_blocks(instance.port.width)
        return simulated_scheduler(self.setup.scheduler, instance.role, num_kv_blocks, self.setup.fast)

    def arrive(self, request: Request, now_ps: int) -> None:
        """A request comes to the client, at ``now_ps``; nothing that is planned is to happen before."""
        number = request.request_id
        flight = Flight(number, request.input_len, request.output_len, now_ps, self._recorded(number))
        self.flights[number] = flight
        self.account.totals.num_requests += 1
        if flight.recorded:
            self.account.stamp(flight, Stage.ARRIVED, 0, now_ps)
            self.account.stamp(flight, Stage.ROUTED, 0, now_ps)
        self.route(flight, now_ps)

    def heard(self, now_ps: int) -> None:
        """Closed loop: the client knows of one more end."""
        self._num_unheard -= 1
        self.refill(now_ps)

    def refill(self, now_ps: int) -> None:
        """Closed loop: the next request is due when the client has heard that one ended."""
        while self._concurrency is not None and len(self.flights) + self._num_unheard < self._concurrency:
            request = next(self._requests, None)
            if request is None:
                return
            self.arrive(request, now_ps)

    def submit(self, flight: Flight, now_ps: int) -> None:
        """A request has come to its first instance."""
        request_id, stays = flight.request_id, flight.prefill == flight.decode
        instance = self.instances[flight.prefill]
        num_output = flight.output_len if stays else 1
        try:
            self.pools[-1][0].scheduler.check_fits(request_id, flight.input_len, flight.output_len)
            if instance.cut(now_ps):
                self.expect_end(instance)
            instance.scheduler.add(Sequence(request_id, flight.prompt, num_output))
        except NeverFits as error:
            instance.flights.pop(request_id, None)
            self.unload(flight)
            self.fail(flight, now_ps, str(error))
            return
        instance.flights[request_id] = flight
        if not stays:
            self.handoffs.submitted(flight, now_ps)
        if instance.idle:
            self.boundary(instance, now_ps)

    def step_ends(self, instance: Instance, now_ps: int) -> None:
        """The last step of an instance's stretch is over."""
        if self.beside is not None and self.beside.lengthens(instance, now_ps):
            return
        if instance.batch:
            assert instance.stretch is not None
            self.loads[-1].ended(instance.index, instance.stretch.num_steps * instance.batch)
        sampled, finished = instance.finish()
        if instance.cancels:
            dropped = {flight.request_id for flight in instance.cancels}
            sampled = [sequence for sequence in sampled if sequence.request_id not in dropped]
        plan = instance.plan
        for sequence in sampled:
            self._sampled(instance, sequence, now_ps)
        if instance.hands_off:
            self.handoffs.chunks_done(instance, plan, now_ps)
        for sequence in finished:
            flight = instance.flights.pop(sequence.request_id)
            instance.scheduler.release(sequence)
            self._finished(flight, instance, now_ps)
        if instance.cancels:
            self._drop(instance, now_ps)
        self.boundary(instance, now_ps)

    def _drop(self, instance: Instance, now_ps: int) -> None:
        """The step is over of which a prompt was part that an outage elsewhere has made void."""
        cancels, instance.cancels = instance.cancels, []
        for flight in cancels:
            instance.scheduler.abort(flight.request_id)
            del instance.flights[flight.request_id]
        for flight in cancels:  # after all have left: the first that comes back here begins a step
            if flight.request_id in self.flights:
                self.route(flight, now_ps)

    def _sampled(self, instance: Instance, sequence: Sequence, now_ps: int) -> None:
        """A prompt is computed, or computed again after preemption."""
        flight = instance.flights[sequence.request_id]
        if flight.num_seen == 0 and instance.number == flight.prefill:
            if flight.recorded:
                self.account.stamp(flight, Stage.PREFILL_END, instance.rank, now_ps)
            if flight.prefill == flight.decode:
                self.account.stamp(flight, Stage.DECODE_ADMIT, instance.rank, now_ps)
            elif flight.output_len > 1:
                self.handoffs.computed(flight, now_ps)
                return
        self.first_token(flight, instance, now_ps)
        if sequence.finished:
            del instance.flights[sequence.request_id]
            instance.scheduler.release(sequence)
            self._finished(flight, instance, now_ps)
        else:
            instance.join(flight)

    def _finished(self, flight: Flight, instance: Instance, now_ps: int) -> None:
        self.account.finished(flight, instance.rank, now_ps)
        self._ended(flight, now_ps)

    def _ended(self, flight: Flight, now_ps: int) -> None:
        del self.flights[flight.request_id]
        if self.hybrid is not None:
            self.hybrid.ended(flight, now_ps)
        if self._concurrency is not None:
            self._num_unheard += 1
            self.agenda.plan(now_ps + self.account.tell_ps, _Refill(self))


class _Submit(Event):
    """A request is on its way to its first instance."""

    __slots__ = ("attempt", "cluster", "flight")

    def __init__(self, cluster: Cluster, flight: Flight) -> None:
        super().__init__()
        self.cluster = cluster
        self.flight = flight
        self.attempt = flight.attempt

    def happen(self, now_ps: int) -> None:
        flight = self.flight
        if flight.attempt == self.attempt and flight.request_id in self.cluster.flights:
            self.cluster.submit(flight, now_ps)


class _Refill(Event):
    __slots__ = ("cluster",)

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster

    def happen(self, now_ps: int) -> None:
        self.cluster.heard(now_ps)
