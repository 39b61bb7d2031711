"""Decode only: for an instance whose prompts are computed elsewhere and arrive as KV.

New sequences come through ``reserve`` and ``admit``. Only a preempted one is computed here, in chunks beside the
decodes, from its prompt and the outputs it has.
"""

from __future__ import annotations

from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.sequence import Sequence


class DecodeOnlyScheduler(ChunkedScheduler):
    def add(self, sequence: Sequence) -> None:
        raise AssertionError(f"request {sequence.request_id} was added to a decode instance: reserve and admit it")
