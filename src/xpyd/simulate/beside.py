"""Steps take longer while KV moves in or out of their instance: by what ``economics.moving`` says, as it moves.

A step that ends has to answer for what moved while it ran, so it is then made longer, once; what moves in that time
counts for the next step. What moves while an instance is idle costs no step anything. Only made where a model has
such costs: without them steps run in stretches as ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xpyd.economics.moving import MovingModel
from xpyd.simulate.costs import PS_PER_S, to_ps
from xpyd.simulate.instance import Instance
from xpyd.simulate.links import Flow

if TYPE_CHECKING:
    from xpyd.simulate.cluster import Cluster


@dataclass(slots=True, eq=False)
class Meter:
    """A hand-off at one of its ends: what is moved of it, and how much of that steps have answered for."""

    flow: Flow
    step_ps: int
    ps_per_unit: float  # of ``Flow.total``
    counted: float = 0.0

    def count(self, now_ps: int) -> float:
        """Picoseconds for what has moved since the last time."""
        moved = self.flow.moved(now_ps)
        added = (moved - self.counted) * self.ps_per_unit
        self.counted = moved
        return added


@dataclass(slots=True, eq=False)
class End:
    """One instance: hand-offs that are open there, and what ended ones have left to the running step."""

    meters: list[Meter]
    step_ps: int = 0
    owed_ps: float = 0.0
    answered: bool = False  # the running step is as long as it gets
    ended_ps: int = -1  # the last step


class Beside:
    """All instances of a cluster."""

    def __init__(self, model: MovingModel, cluster: Cluster) -> None:
        self._model = model
        self._cluster = cluster
        self._ends = [End([]) for _ in cluster.instances]

    def opened(self, flow: Flow, num_bytes: float, source: Instance, destination: Instance, now_ps: int) -> None:
        """A hand-off of so many bytes is accepted: from here on both ends look after it."""
        model, per_unit = self._model, num_bytes / flow.total * PS_PER_S
        for instance, step_s, byte_s in (
            (source, model.send_step_s, model.send_byte_s),
            (destination, model.receive_step_s, model.receive_byte_s),
        ):
            if step_s or byte_s:
                self._ends[instance.number].meters.append(Meter(flow, to_ps(step_s), byte_s * per_unit))
                self._alone(instance, now_ps)

    def closed(self, flow: Flow, instances: tuple[Instance, Instance], now_ps: int) -> None:
        """It has landed, or was taken back: what it still cost falls on the steps that run at its ends."""
        for instance in instances:
            end = self._ends[instance.number]
            for meter in [meter for meter in end.meters if meter.flow is flow]:
                end.meters.remove(meter)
                if instance.stretch is not None:
                    end.owed_ps += meter.count(now_ps)
                    if not end.answered:
                        end.step_ps = max(end.step_ps, meter.step_ps)

    def step_begins(self, instance: Instance, now_ps: int) -> None:
        """Where hand-offs are open, or have left something to this step, steps run one by one."""
        end = self._ends[instance.number]
        if now_ps > end.ended_ps:  # idle until now
            end.owed_ps = 0.0
            for meter in end.meters:
                meter.count(now_ps)
        if end.meters or end.owed_ps:
            instance.cut(now_ps)

    def lengthens(self, instance: Instance, now_ps: int) -> bool:
        """The running step would end now: True where it goes on for what has moved beside it."""
        end = self._ends[instance.number]
        if not end.answered:
            moved_ps = end.owed_ps + sum(meter.count(now_ps) for meter in end.meters)
            added_ps = round(moved_ps) + max([end.step_ps, *(meter.step_ps for meter in end.meters)])
            end.owed_ps, end.step_ps = 0.0, 0
            if added_ps:
                assert instance.stretch is not None
                end.answered = True
                instance.stretch.first_ps += added_ps
                self._cluster.expect_end(instance)
                return True
        end.answered, end.ended_ps = False, now_ps
        return False

    def _alone(self, instance: Instance, now_ps: int) -> None:
        """The step that runs becomes a stretch of its own, which can be made longer."""
        stretch = instance.stretch
        if stretch is None or stretch.num_steps == 1:
            return
        num_before = instance.part(now_ps)
        if num_before and instance.batch:
            self._cluster.loads[-1].ended(instance.index, num_before * instance.batch)
        self._cluster.expect_end(instance)
