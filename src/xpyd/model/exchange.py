"""Rows of bytes between all ranks of an instance, each rank to each: dispatch and combine of expert parallelism.

An exchange is started and finished later, so that its ranks compute in between. Over MPI nothing moves by itself:
``progress`` is to be called while computing. NCCL moves data on a stream of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch


class Pending(Protocol):
    """Something on its way."""

    def progress(self) -> bool:
        """Let it move on; True when it is known to be there."""

    def finish(self, idle: Callable[[], None] | None = None) -> torch.Tensor:
        """Wait, and what came (or went). ``idle`` may be called over and over meanwhile."""


class Exchange(Protocol):
    """The ranks of one instance, seen from one of them; a ``group.Group`` is one."""

    rank: int
    width: int

    def counts(self, sending: Sequence[int]) -> list[int]:
        """Rows that each rank will send here, where this one sends ``sending[r]`` to rank r. Collective."""

    def start(self, rows: torch.Tensor, sending: Sequence[int], receiving: Sequence[int]) -> Pending:
        """Begin to send ``rows`` [sum(sending), row bytes] uint8, those for rank 0 first. Collective.

        What comes is [sum(receiving), row bytes], in the order of the ranks that sent it.
        """
