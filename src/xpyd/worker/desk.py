"""What a rank needs to talk and to write, whatever its role."""

from __future__ import annotations

from dataclasses import dataclass, field

from xpyd.clock import Clock
from xpyd.faults import FaultConfig
from xpyd.placement import CLIENT_RANK, Role
from xpyd.records import StageRow
from xpyd.request import Stage
from xpyd.run_dir import RowWriter
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import Cancelled, Emitted, Failed, Tokens
from xpyd.worker.output import Output


@dataclass(frozen=True)
class Desk:
    """What a rank needs to talk and to write: the same for every role, made once per block."""

    rank: int
    block: int
    mailbox: Mailbox
    rows: RowWriter
    clock: Clock
    followers: tuple[int, ...] = ()  # the other ranks of this rank's instance, where it leads one
    faults: FaultConfig = field(default_factory=FaultConfig)
    role: Role = Role.CLIENT

    @property
    def who(self) -> str:
        """This rank in words, for messages to people."""
        return f"rank {self.rank} ({self.role})"

    @property
    def step_columns(self) -> tuple[int, int, str]:
        """The first ones of every StepRow."""
        return self.block, self.rank, self.role.value

    def stamp(self, request_id: int, stage: Stage, t_ns: int | None = None, reason: str = "") -> None:
        t_ns = self.clock.now_ns() if t_ns is None else t_ns
        self.rows.write(StageRow(self.block, request_id, stage.value, self.rank, t_ns, reason))

    def emit(self, outputs: list[Output], emitted_ns: int) -> None:
        """One message to the client with all tokens of a step."""
        if outputs:
            self.mailbox.send(CLIENT_RANK, Tokens.of(emitted_ns, map(emitted, outputs)))

    def fail(self, request_id: int, reason: str) -> None:
        """Tell the client that this request will not finish."""
        self.mailbox.send(CLIENT_RANK, Failed(request_id, f"{self.who}: {reason}"))

    def confirm(self, request_id: int, attempt: int, stage: str) -> None:
        """Tell the client that nothing is left here of a cancelled request; ``stage``: where it was."""
        self.mailbox.send(CLIENT_RANK, Cancelled(request_id, attempt, stage))


def emitted(output: Output) -> Emitted:
    """As the client is told of it."""
    sampled = output.sampled
    return Emitted(output.sequence.request_id, output.index, sampled.token, sampled.margin)
