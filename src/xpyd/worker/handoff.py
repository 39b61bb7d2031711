"""The hand-off's two ends: what a prefill rank has offered, and what a decode rank is pulling.

Pull: the source offers its block table; the destination accepts only when it has free blocks, posts its receives and
says where; the source then sends piece by piece, as far as the layers are ready; the destination verifies, and
releases. Source blocks are never reused before that release.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt

from xpyd.kv.plan import Plan
from xpyd.scheduler.base import Sequence
from xpyd.transport.flow import RecvFlow, SendFlow
from xpyd.worker.messages import FirstToken, Offer, Submit


@dataclass(frozen=True)
class TransferConfig:
    """How KV moves. ``verify=once`` checks the first transfer of each pair in each block, layer by layer."""

    mode: Literal["whole", "layerwise"] = "whole"
    pieces_in_flight: Annotated[int, Gt(0)] = 8
    max_piece_bytes: Annotated[int, Gt(0)] = 1 << 20
    verify: Literal["off", "once", "always"] = "once"
    first_token: Literal["prefill", "decode"] = "prefill"
    timeout_s: Annotated[float, Gt(0)] = 30.0


@dataclass(slots=True)
class Outgoing:
    """A request on its prefill rank, from its offer to its release."""

    submit: Submit
    sequence: Sequence
    transfer_seq: int
    accepted_ns: int = 0  # this rank's own clock, for the timeout only
    layers_ready: int = 0
    plan: Plan | None = None
    flow: SendFlow | None = None

    def layers_done(self, num_layers: int) -> None:
        """The KV of the first ``num_layers`` layers is final: those pieces may leave."""
        self.layers_ready = max(self.layers_ready, num_layers)
        if self.flow is not None and self.plan is not None and self.layers_ready:
            self.flow.release(self.plan.part_ends[self.layers_ready - 1])


@dataclass(slots=True)
class Incoming:
    """A request on its decode rank, from its offer to its admission."""

    source: int
    offer: Offer
    accepted_ns: int = 0
    table: list[int] = field(default_factory=list)
    plan: Plan | None = None
    flow: RecvFlow | None = None
    num_inflight: int = 0
    landed_ns: int | None = None
    first: FirstToken | None = None
