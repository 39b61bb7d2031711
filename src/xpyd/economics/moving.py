"""What moving KV costs the steps beside it: on the rank that takes it in, and on the rank that gives it.

Workers move KV on their own threads, between layers and between steps. So a step beside a hand-off takes longer: by
something for looking after it, and by something for every byte, which is copied, and handled by the kernel on the same
cores. ``worker.beside`` measures both, ``simulate.beside`` adds them to simulated steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xpyd.economics.nnls import nnls


@dataclass(frozen=True)
class BesidePoint:
    """``num_steps`` steps beside a hand-off of ``num_bytes``, ``seconds`` in all; each takes ``usual_s`` without it.

    ``sends``: the steps are those of the rank that gives KV. ``num_seqs``: of the destination's decode batch,
    ``num_tokens``: of the prompt in each step of the source, 0 where it only sends.
    """

    sends: bool
    seconds: float
    usual_s: float
    num_steps: int
    num_bytes: float
    num_seqs: int
    num_tokens: int

    @property
    def setting(self) -> tuple[bool, float, int, int]:
        """What repeats have in common."""
        return self.sends, self.num_bytes, self.num_seqs, self.num_tokens


@dataclass(frozen=True)
class MovingModel:
    """Seconds added: ``step_s`` to each step while a hand-off is open, ``byte_s`` for each byte that moves in it."""

    receive_step_s: float = 0.0
    receive_byte_s: float = 0.0
    send_step_s: float = 0.0
    send_byte_s: float = 0.0


UNKNOWN = MovingModel()  # as if moving cost nothing


def fit_moving(points: Sequence[BesidePoint]) -> MovingModel:
    """Both ends, each from its own points; 0 for an end that was not measured."""
    received = _fit([point for point in points if not point.sends])
    sent = _fit([point for point in points if point.sends])
    return MovingModel(*received, *sent)


def _fit(points: Sequence[BesidePoint]) -> tuple[float, float]:
    """Least squares on the medians over repeats of what each setting adds, relative to its usual time; none below 0.

    Medians, as one stalled step in a hand-off would else count as its cost.
    """
    groups: defaultdict[tuple[bool, float, int, int], list[BesidePoint]] = defaultdict(list)
    for point in points:
        groups[point.setting].append(point)
    if not groups:
        return 0.0, 0.0
    rows, added = [], []
    for own in groups.values():
        shares = [1 / (point.num_steps * point.usual_s) for point in own]
        features = [(p.num_steps * share, p.num_bytes * share) for p, share in zip(own, shares, strict=True)]
        rows.append(np.median(features, axis=0))
        added.append(np.median([p.seconds * share - 1 for p, share in zip(own, shares, strict=True)]))
    step_s, byte_s = nnls(np.array(rows), np.array(added)).tolist()
    return step_s, byte_s
