"""What a step of the engine yields. Plain data: whoever tells others of it needs no model."""

from __future__ import annotations

import msgspec

from xpyd.model.sampled import Sampled
from xpyd.scheduler.sequence import Sequence


class Output(msgspec.Struct, frozen=True):
    """One token that a step yielded: the ``index``-th output of its request."""

    sequence: Sequence
    index: int
    sampled: Sampled
