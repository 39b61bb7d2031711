"""The two ledgers as numbers: what a request's way costs in each arm, and the lines whose sum is the net saving.

One definition for the prediction (closed form) and the measurement (means over requests): both fill ``ArmTimes``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

LENGTH_EDGES = (128, 512, 2048, 8192)


@dataclass(frozen=True)
class ArmTimes:
    """Mean seconds per request in one arm and one length class; the five stages of its way add up to ``e2e_s``."""

    queue_s: float  # ARRIVED .. PREFILL_BEGIN
    prefill_s: float  # PREFILL_BEGIN .. PREFILL_END
    exposed_transfer_s: float  # PREFILL_END .. TRANSFER_END, 0 where nothing moved or all was hidden
    admission_s: float  # the rest of PREFILL_END .. DECODE_ADMIT
    decode_s: float  # DECODE_ADMIT .. last token

    @property
    def e2e_s(self) -> float:
        return self.queue_s + self.prefill_s + self.exposed_transfer_s + self.admission_s + self.decode_s


@dataclass(frozen=True)
class Ledger:
    """Seconds per request that splitting costs (``bill_s``) and saves (the others; negative: it loses there)."""

    bill_s: float  # the transfer bill: exposed transfer + admission wait, less the colocated arm's own admission wait
    win_s: float  # the interference win: decode seconds saved, over all tokens of the request
    pools_s: float  # queue and prefill seconds saved; negative where x of N ranks prefill slower than all N

    @property
    def ledger_s(self) -> float:
        """Win minus bill: the two ledgers alone."""
        return self.win_s - self.bill_s

    @property
    def net_s(self) -> float:
        """End-to-end seconds saved per request: win - bill + pools."""
        return self.win_s - self.bill_s + self.pools_s


def make_ledger(colocated: ArmTimes, disaggregated: ArmTimes) -> Ledger:
    """The ledger of splitting: ``net_s`` equals colocated ``e2e_s`` - disaggregated ``e2e_s`` exactly."""
    return Ledger(
        bill_s=disaggregated.exposed_transfer_s
        + disaggregated.admission_s
        - colocated.exposed_transfer_s
        - colocated.admission_s,
        win_s=colocated.decode_s - disaggregated.decode_s,
        pools_s=colocated.queue_s + colocated.prefill_s - disaggregated.queue_s - disaggregated.prefill_s,
    )


def length_class(input_len: int, edges: Sequence[int] = LENGTH_EDGES) -> str:
    """The length bucket of a prompt, such as ``129-512``; the decision is made per bucket, never once per cluster."""
    index = bisect_left(edges, input_len)
    if index == len(edges):
        return f">{edges[-1]}"
    low = 1 if index == 0 else edges[index - 1] + 1
    return f"{low}-{edges[index]}"
