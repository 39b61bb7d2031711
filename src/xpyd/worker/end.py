"""An end of the hand-off, as its worker sees it; ``source`` and ``destination`` are the two."""

from __future__ import annotations

from abc import ABC, abstractmethod

from xpyd.worker.engine import Engine
from xpyd.worker.messages import AnyMessage
from xpyd.worker.mover import Mover


class End(ABC):
    """One end of the hand-off on a rank: a part of its worker, which tells it of messages, steps and cancels.

    ``expects``: quiet as it is, it may be sent something that should not wait for a long step to end.
    """

    expects = False

    def __init__(self, engine: Engine, mover: Mover) -> None:
        self.engine = engine
        self.mover = mover
        self.desk = mover.desk
        self._transport = mover.transport
        self._config = mover.config
        self._cache = mover.cache
        self._slots = mover.slots
        self._blocks_per_part = mover.blocks_per_part
        self._one_sided_pull = mover.one_sided_pull
        self._one_sided_push = mover.one_sided_push

    @abstractmethod
    def handle(self, source: int, message: AnyMessage) -> bool:
        """React to a message; False where it is none of this end's."""

    @abstractmethod
    def move(self) -> bool:
        """Progress KV between steps; True when something moved."""

    @abstractmethod
    def between_layers(self) -> None:
        """Progress KV while a step runs: its batch stays as it is."""

    @abstractmethod
    def cancel(self, request_id: int, attempt: int) -> bool:
        """Drop a hand-off, and confirm it when its blocks are free; False where there is none here."""

    @property
    @abstractmethod
    def quiet(self) -> bool:
        """No hand-off is left."""

    @abstractmethod
    def stages(self) -> dict[int, str]:
        """What every hand-off here is doing."""

    @abstractmethod
    def unfinished(self) -> str:
        """How many hand-offs are left, in words."""
