"""Steps that are not all equally long: each takes a draw from how the steps of a calibration lay about their model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from xpyd.economics.engine import Scatter
from xpyd.placement import Role
from xpyd.simulate.instance import Instance

NUM_DRAWN = 1024  # at a time


class Scattered:
    """Draws of one cluster, the same for the same ``seed``. Steps run one by one where they scatter."""

    def __init__(self, scatters: Mapping[str, Scatter], seed: int) -> None:
        self._scatters = scatters
        self._generator = np.random.default_rng(seed)
        self._drawn: defaultdict[tuple[str, bool], list[float]] = defaultdict(list)

    def step_begins(self, instance: Instance, now_ps: int) -> None:
        """The first step of a stretch takes its draw, and is the only one."""
        role = Role.DECODE if instance.role is Role.HYBRID else instance.role
        if role in self._scatters:
            instance.cut(now_ps)
            assert instance.stretch is not None
            factor = self._draw(role, bool(instance.plan.prefills))
            instance.stretch.first_ps = max(1, round(instance.stretch.first_ps * factor))

    def _draw(self, role: str, prefill: bool) -> float:
        drawn = self._drawn[role, prefill]
        if not drawn:
            known = self._scatters[role].prefill if prefill else self._scatters[role].decode
            drawn += self._generator.choice(known, NUM_DRAWN).tolist()
        return drawn.pop()
