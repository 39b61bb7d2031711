"""Outages: an instance stops, is missed after a while, and comes back empty; its requests are routed anew or fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xpyd.request import Stage
from xpyd.simulate.account import Flight
from xpyd.simulate.agenda import Event
from xpyd.simulate.costs import to_ps
from xpyd.simulate.instance import Instance

if TYPE_CHECKING:
    from xpyd.simulate.cluster import Cluster

DOWN, MISSED, UP = range(3)


class Outages:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def plan(self) -> None:
        """Schedule every outage: down, missed ``detect_s`` later, up again."""
        setup, instances = self._cluster.setup, self._cluster.instances
        for outage in setup.options.outages:
            if outage.instance >= len(instances):
                continue  # the other arm may have more
            instance = instances[outage.instance]
            agenda = self._cluster.agenda
            agenda.plan(to_ps(outage.from_s), _Turn(self, instance, DOWN))
            agenda.plan(to_ps(outage.from_s + setup.detect_s), _Turn(self, instance, MISSED))
            agenda.plan(to_ps(outage.to_s), _Turn(self, instance, UP))

    def turn(self, instance: Instance, what: int, now_ps: int) -> None:
        """An outage begins, is noticed, or ends."""
        if what == DOWN:
            self._down(instance, now_ps)
        elif what == MISSED:
            self._missed(instance, now_ps)
        else:
            self._up(instance, now_ps)

    def _down(self, instance: Instance, now_ps: int) -> None:
        instance.settle(now_ps)
        for flight in self._hit(instance):
            if instance.number == flight.decode:
                flight.num_tokens = max(flight.num_tokens, instance.num_out(flight.request_id))
            self._cluster.handoffs.stall(flight, now_ps)
        num_decoded = instance.stop()
        self._cluster.agenda.cancel(instance)
        if instance in self._cluster.pools[-1]:
            self._cluster.loads[-1].ended(instance.index, num_decoded)

    def _missed(self, instance: Instance, now_ps: int) -> None:
        loads = self._cluster.loads[0 if instance in self._cluster.pools[0] else -1]
        loads.down(instance.index)
        for flight in self._hit(instance):
            self._rescue(flight, instance, now_ps)
        loads.forget(instance.index)

    def _up(self, instance: Instance, now_ps: int) -> None:
        loads = self._cluster.loads[0 if instance in self._cluster.pools[0] else -1]
        instance.up = True
        loads.back(instance.index)
        self._cluster.renew(instance)
        self._cluster.unpark(now_ps)

    def _hit(self, instance: Instance) -> list[Flight]:
        """Requests that are on the instance, or on their way to it."""
        number = instance.number
        return [
            flight
            for flight in self._cluster.flights.values()
            if flight.decode == number or (flight.prefill == number and flight.request_id in instance.flights)
        ]

    def _rescue(self, flight: Flight, lost: Instance, now_ps: int) -> None:
        """Forget the attempt wherever it is, and route the request anew, or let it fail."""
        cluster, request_id = self._cluster, flight.request_id
        cluster.handoffs.undo(flight, now_ps)
        cluster.unload(flight)
        flight.attempt += 1
        flight.in_batch = False
        reason = f"instance {lost.number} ({lost.role}, rank {lost.rank}) is down"
        for instance in (cluster.instances[flight.prefill], cluster.instances[flight.decode]):
            if instance is lost:
                instance.flights.pop(request_id, None)
        source = cluster.instances[flight.prefill]
        runs = source.up and any(chunk.sequence.request_id == request_id for chunk in source.plan.prefills)
        retry = flight.attempt <= cluster.setup.max_retries
        if retry:
            cluster.account.totals.num_retries += 1
            cluster.account.stamp(flight, Stage.RETRIED, 0, now_ps, reason)
        else:
            cluster.fail(flight, now_ps, reason)
        if runs and not source.idle and request_id in source.flights:
            source.cancels.append(flight)  # routed, or forgotten, when the step has ended
            return
        if request_id in source.flights:
            source.scheduler.abort(request_id)
            del source.flights[request_id]
        cluster.instances[flight.decode].flights.pop(request_id, None)
        if retry:
            cluster.route(flight, now_ps)


class _Turn(Event):
    __slots__ = ("instance", "outages", "what")

    def __init__(self, outages: Outages, instance: Instance, what: int) -> None:
        super().__init__()
        self.outages = outages
        self.instance = instance
        self.what = what

    def happen(self, now_ps: int) -> None:
        self.outages.turn(self.instance, self.what, now_ps)
