"""The colocated worker: one rank prefills and decodes, prefill-first or chunked. The rival of splitting."""

from __future__ import annotations

from typing import ClassVar

from xpyd.placement import Role
from xpyd.request import Stage
from xpyd.scheduler.base import Sequence
from xpyd.worker.base import Worker
from xpyd.worker.engine import Output
from xpyd.worker.messages import AnyMessage, Submit, unpack_prompt


class ColocatedWorker(Worker):
    role: ClassVar[Role] = Role.COLOCATED

    def handle(self, source: int, message: AnyMessage) -> None:
        assert isinstance(message, Submit), f"rank {source} sent {type(message).__name__} to a colocated worker"
        sequence = Sequence(message.request_id, unpack_prompt(message.prompt), message.output_len, seed=message.seed)
        self.add(sequence)

    def committed(self, outputs: list[Output], finished: list[Sequence], end_ns: int) -> None:
        for output in outputs:
            if output.index == 0:  # in the decode batch from here on: what stalls it now is interference
                self.desk.stamp(output.sequence.request_id, Stage.PREFILL_END, end_ns)
                self.desk.stamp(output.sequence.request_id, Stage.DECODE_ADMIT, end_ns)
        self.emit(outputs, end_ns)
        for sequence in finished:
            self.engine.scheduler.release(sequence)
