"""Bytes by three independent counters, side by side: what was planned, what the transport and the interfaces saw.

A zero, a minus one (not readable) or a difference is never shown as validated.
"""

from __future__ import annotations

from dataclasses import dataclass

from analysis.load import Run
from xpyd.records import HYBRID, SPLIT_ARMS

OVERHEAD_ALLOWED = 0.25  # interfaces also count packet headers and control messages


@dataclass(frozen=True)
class Traffic:
    """Byte sums of one arm over its blocks; ``interface_bytes`` is -1 where any block could not read them."""

    arm: str
    ledger_bytes: int
    transport_bytes: int
    interface_bytes: int

    @property
    def finding(self) -> str:
        if self.arm == HYBRID and not self.ledger_bytes and not self.transport_bytes:
            return "nothing moved: every request stayed"
        if self.arm not in (*SPLIT_ARMS, HYBRID):
            return "nothing moved" if not self.ledger_bytes and not self.transport_bytes else "MISMATCH: bytes moved"
        if self.ledger_bytes <= 0 or self.transport_bytes <= 0:
            return "NOT validated: nothing was counted"
        if self.ledger_bytes != self.transport_bytes:
            return "MISMATCH: ledger and transport differ"
        if self.interface_bytes < 0:
            return "ledger = transport; interface counters not readable for this route"
        excess = self.interface_bytes / self.ledger_bytes - 1
        if excess < 0:
            return f"MISMATCH: interfaces saw {-excess:.1%} less"
        if excess > OVERHEAD_ALLOWED:
            return f"ledger = transport; interfaces carried {excess:.0%} more (other traffic): not validated there"
        return f"validated by all three (interfaces {excess:+.1%})"


def count_traffic(run: Run) -> list[Traffic]:
    """One Traffic per arm, in the order in which arms first played."""
    found = []
    for arm, blocks in run.tables["blocks"].groupby("arm", sort=False):
        readable = bool((blocks["interface_bytes"] >= 0).all())
        interface_bytes = int(blocks["interface_bytes"].sum()) if readable else -1
        sums = int(blocks["ledger_bytes"].sum()), int(blocks["transport_bytes"].sum())
        found.append(Traffic(str(arm), *sums, interface_bytes))
    return found
