"""What the preflight asks for: how long to wait for an answer, how much to send, and where ok ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Lt

from xpyd.units import MIB


@dataclass(frozen=True)
class CheckConfig:
    """``timeout_s`` bounds each probe: who has not answered by then is a finding, and the next one is asked.

    Bandwidth is the median of ``num_repeats`` windows of ``num_pieces`` pieces. It is ok between the two shares of
    ``fabric.rate_gbps``. ``strict`` lets warnings fail the check, too.
    """

    strict: bool = False
    timeout_s: Annotated[float, Gt(0)] = 10.0
    echo_bytes: Annotated[int, Gt(0)] = MIB
    piece_bytes: Annotated[int, Gt(0)] = MIB
    num_pieces: Annotated[int, Gt(0), Lt(65536)] = 32
    num_repeats: Annotated[int, Gt(0)] = 5
    min_rate_share: Annotated[float, Gt(0)] = 0.7
    max_rate_share: Annotated[float, Gt(0)] = 1.5
    max_clock_error_s: Annotated[float, Gt(0)] = 1e-3
    min_free_bytes: Annotated[int, Gt(0)] = 1024 * MIB

    def __post_init__(self) -> None:
        if self.min_rate_share >= self.max_rate_share:
            raise ValueError(
                f"min_rate_share={self.min_rate_share} is not below max_rate_share={self.max_rate_share}: no bandwidth "
                "would be ok; lower the first or raise the second"
            )

    @property
    def window_bytes(self) -> int:
        """Bytes of one bandwidth window."""
        return self.piece_bytes * self.num_pieces

    @property
    def buffer_bytes(self) -> int:
        """What a rank registers: a window, or an echo beside what comes back."""
        return max(self.window_bytes, 2 * self.echo_bytes)
